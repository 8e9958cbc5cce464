"""The report is one offline page, escaped throughout, that says what the comparison says."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fits
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from bayesgmm.display.comparison import compare
from bayesgmm.display.page import report, to_html
from bayesgmm.display.words import headline
from bayesgmm.errors import ArgumentError

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "input", "base")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


VERDICT = {
    "status": "warn",
    "checks": [
        {"code": "r-hat", "status": "ok", "evidence": "largest 1.001", "advice": "nothing"},
        {"code": "divergences", "status": "warn", "evidence": "3 diverged", "advice": "Do this."},
    ],
}
WARNINGS = [
    {"code": "divergences", "message": "told already"},
    {"code": "other", "message": "heavy <tails>"},
]


@pytest.fixture(scope="module")
def mle() -> xr.DataTree:
    return fits.em_fit(order=(1, 0))


@pytest.fixture(scope="module")
def post() -> xr.DataTree:
    def shift(flat: np.ndarray) -> np.ndarray:
        return flat + np.eye(11)[2] * 0.5

    return fits.nuts_fit(shift=shift, verdict=json.dumps(VERDICT), warnings=json.dumps(WARNINGS))


@pytest.fixture(scope="module")
def comparison(mle: xr.DataTree, post: xr.DataTree) -> xr.Dataset:
    return compare(mle, post)


@pytest.fixture(scope="module")
def text(comparison: xr.Dataset, mle: xr.DataTree, post: xr.DataTree) -> str:
    return to_html(comparison, mle=mle, post=post, title="Old Faithful")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


class TestContent:
    def test_headline(self, page: Page, comparison: xr.Dataset) -> None:
        assert headline(comparison) in page.text
        assert "agree on 11 of 12 parameters" in page.text
        assert page.text.count("Old Faithful") == 2

    def test_table(self, page: Page, comparison: xr.Dataset) -> None:
        header = next(row for row in page.cells if row[0] == "parameter")
        assert header[2] == "95 % Wald"
        assert header[4] == "95 % ETI"
        rows = [row for row in page.cells if row[0] in comparison["label"].values]
        assert [row[0] for row in rows] == list(comparison["label"].values)
        row = next(row for row in rows if row[0] == "mean[0, waiting]")
        assert row[1:3] == ["79.97", "79.07 to 80.86"]
        assert row[-1] == "no"
        assert [row[-1] for row in rows].count("yes") == 11

    def test_reasons(self, page: Page, comparison: xr.Dataset) -> None:
        reason = comparison["reason"].sel(parameter="mean[0, waiting]").item()
        assert f"mean[0, waiting] {reason}" in page.text

    def test_criteria_with_their_signs(self, page: Page) -> None:
        for name in ("AIC 2282.53", "BIC 2322.19", "ICL 2325.19"):
            assert f"{name} (smaller is better)" in page.text
        assert "elpd -1141.50, standard error 16.10 (larger is better)" in page.text

    def test_verdicts(self, page: Page) -> None:
        row = next(row for row in page.cells if row[0] == "divergences")
        assert row == ["divergences", "warn", "3 diverged", "Do this."]
        assert "largest 1.001" not in page.text
        assert "heavy <tails>" in page.text
        assert "told already" not in page.text

    def test_how_it_was_made(self, page: Page) -> None:
        for word in ("random seed 1", "total 0.25 s", "python 3.12, numpy 2.5", "sha256:feed"):
            assert word in page.text
        assert '"n_components": 2' in page.text

    def test_data(self, page: Page) -> None:
        assert ["waiting", "70.9", "13.6", "43.0", "96.0"] in page.cells

    def test_agreement_is_told_with_its_limits(self, mle: xr.DataTree) -> None:
        page = Page(to_html(compare(mle, fits.nuts_fit())))
        assert "within 0.25 posterior standard deviations" in page.text
        assert any("good" in (attrs.get("class") or "") for attrs in page.all("p"))


class TestSafety:
    def test_offline_and_without_script(self, text: str, page: Page) -> None:
        assert page.all("script") == []
        assert page.all("link") == []
        assert "://" not in text
        policy = page.all("meta")[1]
        assert policy["http-equiv"] == "Content-Security-Policy"
        assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)

    def test_pictures_are_inside_with_alternative_texts(self, page: Page) -> None:
        images = page.all("img")
        assert len(images) == 2
        for image in images:
            kind, data = str(image["src"]).split(",")
            assert kind == "data:image/png;base64"
            size = Image.open(io.BytesIO(base64.b64decode(data))).size
            assert size[0] / size[1] == pytest.approx(
                int(str(image["width"])) / int(str(image["height"])), rel=0.01
            )
            assert len(str(image["alt"])) > 60

    def test_small(self, text: str) -> None:
        assert len(text.encode()) < 2_000_000

    def test_hostile_names_are_text(self) -> None:
        names = (SCRIPT, '"><img src=x onerror=alert(1)>')
        verdict = {
            "status": SCRIPT,
            "checks": [{"code": SCRIPT, "status": "warn", "evidence": SCRIPT, "advice": SCRIPT}],
        }
        hostile = {
            "verdict": json.dumps(verdict),
            "warnings": json.dumps([{"code": f"{SCRIPT}2", "message": SCRIPT}]),
            "versions": json.dumps({SCRIPT: SCRIPT}),
            "timings": SCRIPT,
        }
        mle = fits.em_fit(features=names, **hostile, stop_reason=SCRIPT, engine=SCRIPT)
        post = fits.nuts_fit(features=names, draws=50, **hostile)
        text = to_html(compare(mle, post), mle=mle, post=post, title=SCRIPT)
        page = Page(text)
        assert "<script" not in text
        assert page.all("script") == []
        assert len(page.all("img")) == 2
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
        assert f"mean[0, {SCRIPT}]" in page.text

    def test_letters_without_a_glyph(self) -> None:
        names = ("待ち時間", "噴火")
        mle, post = fits.em_fit(features=names), fits.nuts_fit(features=names, draws=20)
        assert "待ち時間" in to_html(compare(mle, post), mle=mle, post=post)


class TestFile:
    def test_written_whole_with_the_usual_rights(
        self, comparison: xr.Dataset, tmp_path: Path
    ) -> None:
        target = tmp_path / "report.html"
        target.write_text("old")
        other = tmp_path / "other"
        other.touch()
        assert report(comparison, target) == target
        assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert target.stat().st_mode == other.stat().st_mode
        assert {path.name for path in tmp_path.iterdir()} == {"report.html", "other"}

    def test_a_failure_leaves_the_old_file(
        self, comparison: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "report.html"
        target.write_text("old")

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="No space left"):
            report(comparison, target)
        assert target.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_without_the_fits_there_is_no_picture_of_the_data(
        self, comparison: xr.Dataset, tmp_path: Path
    ) -> None:
        text = report(comparison, tmp_path / "r.html").read_text(encoding="utf-8")
        assert len(re.findall("<img", text)) == 1

    def test_from_a_saved_comparison(self, comparison: xr.Dataset, tmp_path: Path) -> None:
        comparison.to_netcdf(tmp_path / "c.nc")
        assert to_html(xr.load_dataset(tmp_path / "c.nc")) == to_html(comparison)

    def test_refusals(
        self, comparison: xr.Dataset, mle: xr.DataTree, post: xr.DataTree, tmp_path: Path
    ) -> None:
        with pytest.raises(ArgumentError, match=r"folder .* does not exist"):
            report(comparison, tmp_path / "no" / "r.html")
        with pytest.raises(ArgumentError, match="is a folder"):
            report(comparison, tmp_path)
        with pytest.raises(ArgumentError, match=r"^post: is missing"):
            report(comparison, tmp_path / "r.html", mle=mle)
        other = fits.nuts_fit(draws=5, fingerprint="sha256:other")
        with pytest.raises(ArgumentError, match=r"^post: is a fit of other data"):
            report(comparison, tmp_path / "r.html", mle=mle, post=other)
        assert list(tmp_path.iterdir()) == []
