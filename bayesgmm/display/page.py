"""One offline HTML page that says what was fitted, whether the fits agree, and why not."""

from __future__ import annotations

import base64
import json
import os
import warnings
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesgmm.data.units import with_unit
from bayesgmm.display.forest import Collection, plot_compare
from bayesgmm.display.plots import Picture, plot_density
from bayesgmm.display.reasons import OVERLAP_LIMIT, SD_RATIO_LIMIT, Z_LIMIT
from bayesgmm.display.words import (
    SIDES,
    facts,
    failed_checks,
    format_number,
    format_rows,
    headline,
    reasons_of,
    refuse_other,
    verdict,
)
from bayesgmm.errors import ArgumentError
from bayesgmm.files import atomic
from bayesgmm.labelling.diagnosis import COLUMNS, diagnose
from bayesgmm.mixture import GaussianMixture
from bayesgmm.rows import printable
from bayesgmm.tree import whole

TITLE = "Gaussian mixture: point estimate and posterior"


def report(
    comparison: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    mle: xr.DataTree | None = None,
    post: xr.DataTree | None = None,
    title: str = TITLE,
) -> Path:
    """Write a comparison as one HTML page that needs no network, no script and no other file.

    Parameters
    ----------
    comparison : Dataset
        From `compare`; what it holds is enough for all but the picture of the data.
    path : path
        File to write; an existing one is replaced, whole or not at all.
    mle, post : DataTree, optional
        The two fits that were compared. With both, the page has the data and both densities.
    title : str
        Heading of the page.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ArgumentError
        If the folder does not exist, or only one of the fits is given, or they are of other data.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ArgumentError("path", f"the folder {target.parent} does not exist")
    if target.is_dir():
        raise ArgumentError("path", f"{target} is a folder; give the name of a file")
    page = to_html(comparison, mle=mle, post=post, title=title)
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target


def to_html(
    comparison: xr.Dataset,
    *,
    mle: xr.DataTree | None = None,
    post: xr.DataTree | None = None,
    title: str = TITLE,
) -> str:
    """Return the page of `report` as text."""
    refuse_other(comparison)
    density = None
    if mle is not None and post is not None:
        for name, fit in (("mle", mle), ("post", post)):
            whole(name, fit, "observed_data")
            if fit.attrs.get("fingerprint") != comparison.attrs["fingerprint"]:
                raise ArgumentError(name, "is a fit of other data than the comparison")
        density = _picture(plot_density(mle, post))
    elif mle is not None or post is not None:
        raise ArgumentError("post" if post is None else "mle", "is missing: give both fits or none")
    attrs = comparison.attrs
    data = json.loads(attrs["data"])
    header, rows = format_rows(comparison)
    fits = [_fit(comparison, side) for side in SIDES]
    all_well = bool(comparison["agree"].all()) and all(fit["status"] == "ok" for fit in fits)
    columns = (data[name] for name in ("names", "mean", "sd", "min", "max"))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            spec=GaussianMixture.from_json(attrs["spec"]),
            spec_json=json.dumps(json.loads(attrs["spec"]), indent=2),
            data=data,
            features=[
                [
                    printable(with_unit(name, data.get("units", {}).get(name, ""))),
                    *(format_number(value, sd / 10) for value in (mean, sd, low, high)),
                ]
                for name, mean, sd, low, high in zip(*columns, strict=True)
            ],
            fingerprint=attrs["fingerprint"],
            headline=headline(comparison),
            all_well=all_well,
            reasons=reasons_of(comparison),
            limits={"z": Z_LIMIT, "ratio": SD_RATIO_LIMIT, "overlap": OVERLAP_LIMIT},
            fits=fits,
            facts=facts(comparison),
            level=f"{100 * attrs['ci_prob']:g} %",
            header=header,
            rows=rows,
            reordered=json.loads(attrs["permutation"]) != sorted(json.loads(attrs["permutation"])),
            forest=_picture(plot_compare(comparison)),
            density=density,
            convergence=None if post is None else _convergence(post),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("bayesgmm.display"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _fit(comparison: xr.Dataset, side: str) -> dict[str, Any]:
    """Return what the page says about one of the fits."""
    attrs = comparison.attrs
    made: dict[str, Any] = json.loads(attrs[f"{side}_made"])
    checks = failed_checks(comparison, side)
    told = {check["code"] for check in checks}
    given = json.loads(attrs[f"{side}_warnings"])
    return {
        "name": attrs[f"{side}_name"],
        "status": verdict(comparison, side)["status"],
        "checks": checks,
        "warnings": [warning for warning in given if warning["code"] not in told],
        "made": {name.replace("_", " "): _in_words(value) for name, value in made.items()},
    }


def _convergence(post: xr.DataTree) -> dict[str, Any] | None:
    """Return the worst of raw, aligned and label-free draws, and a sentence that reads it."""
    if not {"labels", "label_free"} <= set(post.children) or post["posterior"].sizes["draw"] < 4:
        return None
    table = diagnose(post)
    rows = []
    for name, what, worst, unit in (
        ("r_hat", "largest R-hat", "max", 0.01),
        ("ess_bulk", "smallest bulk ESS", "min", 10.0),
        ("ess_tail", "smallest tail ESS", "min", 10.0),
    ):
        found = getattr(table[name], worst)()
        rows.append([what, *(format_number(found[column], unit) for column in COLUMNS)])
    return {"reading": table.attrs["reading"], "columns": COLUMNS, "rows": rows}


def _in_words(value: Any) -> str:
    """Return a JSON object as "key value, key value", anything else as it is."""
    if isinstance(value, str) and value.startswith("{"):
        pairs = json.loads(value).items()
        return ", ".join(
            f"{key} {f'{item:.2f} s' if isinstance(item, float) else item}" for key, item in pairs
        )
    return str(value)


def _picture(picture: Picture | Collection) -> dict[str, Any]:
    """Return a picture as a data address with its size on the page and its alternative text."""
    with warnings.catch_warnings():
        # The tables have every name; a font that lacks a letter is no news to the reader.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        source = base64.b64encode(picture.to_png()).decode("ascii")
    width, height = picture.figure.get_size_inches()
    return {
        "source": f"data:image/png;base64,{source}",
        "alt": picture.alt,
        "width": round(96 * width),
        "height": round(96 * height),
    }
