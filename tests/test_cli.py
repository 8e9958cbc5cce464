"""The command line: exit codes, one message per error, and files that are read or refused."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from bayesgmm import cli
from bayesgmm.checks import Check, Verdict
from bayesgmm.data.tablefile import load_table
from bayesgmm.errors import (
    ArgumentError,
    ColumnNameError,
    DataError,
    DataWarning,
    EmptyDataError,
    FitWarning,
    InfiniteValueError,
    MissingValueError,
    NonNumericError,
    NumericalError,
    ShapeError,
)

OK = Verdict((Check("rhat", "ok", "1.00"),))
BAD = Verdict((Check("rhat", "warn", "1.02", "Sample longer."),))
TABLE = "a,b\n1,2\n3,4.5\n-1e3,.5\n"


def fake_fit(verdict=OK, stop_reason="converged"):
    root = xr.Dataset(attrs={"verdict": verdict.to_json(), "stop_reason": stop_reason})
    criteria = xr.Dataset(dict.fromkeys(("loglik", "aic", "bic", "icl"), ((), -3.25)))
    starts = xr.Dataset({"reason": ("start", np.array([stop_reason]))})
    return xr.DataTree.from_dict({"/": root, "/criteria": criteria, "/starts": starts})


class Engines:
    """Stand-ins for all that the commands call; what they were called with."""

    def __init__(self):
        self.calls = []
        self.mle, self.post = fake_fit(), fake_fit()
        self.error = None

    def fit_em(self, spec, X, **options):
        self.calls.append(("fit_em", spec, X, options))
        if self.error is not None:
            raise self.error
        return self.mle

    def sample_posterior(self, spec, X, **options):
        self.calls.append(("sample_posterior", spec, X, options))
        return self.post

    def save(self, fit, path):
        Path(path).write_text("fit")

    def summary(self, fit):
        return pd.DataFrame(
            {"estimate": [1.0, 2.0], "se": [0.5, np.nan]},
            index=["mean[0, a]", "mean[0, \x1b[31mred]"],
        )

    def compare(self, mle, post):
        return "comparison"

    def to_frame(self, comparison):
        return pd.DataFrame({"estimate": [1.5]}, index=pd.Index(["=cmd()"], name="label"))

    def format_table(self, comparison, *, width):
        return f"the table, {width} wide, of \x1b[31mred"

    def report(self, comparison, path, *, mle, post):
        Path(path).write_text("<html>")


@pytest.fixture
def engines(monkeypatch):
    fakes = Engines()
    for module, names in {
        "bayesgmm.em.fit": ["fit_em"],
        "bayesgmm.posterior.bayes": ["sample_posterior"],
        "bayesgmm.tree": ["save"],
        "bayesgmm.rows": ["summary"],
        "bayesgmm.display.comparison": ["compare"],
        "bayesgmm.display.words": ["to_frame", "format_table"],
        "bayesgmm.display.page": ["report"],
    }.items():
        fake = types.ModuleType(module)
        for name in names:
            setattr(fake, name, getattr(fakes, name))
        monkeypatch.setitem(sys.modules, module, fake)
        package, _, own = module.rpartition(".")
        monkeypatch.setattr(importlib.import_module(package), own, fake, raising=False)
    return fakes


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(TABLE)
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="bayesgmm")


# Commands and exit codes


def test_compare_writes_everything_and_ends_with_the_report(engines, data, tmp_path):
    out = tmp_path / "new" / "out"
    result = run("compare", data, "-k", 2, "-o", out, "--columns", "b,a", "--draws", 50)
    assert result.exit_code == 0, result.output
    for name, content in {
        "report.html": "<html>",
        "mle.nc": "fit",
        "posterior.nc": "fit",
        "comparison.csv": "label,estimate\n=cmd(),1.5\n",
    }.items():
        assert (out / name).read_text() == content
    assert result.stdout.splitlines()[0].startswith("the table, 132 wide")
    assert result.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    (_, spec, frame, options), (_, same, other, sampling) = engines.calls
    assert spec == same
    assert (spec.n_components, str(spec.covariance)) == (2, "VVV")
    assert list(frame.columns) == ["b", "a"] == list(other.columns)
    assert options == {"random_seed": 1, "n_starts": 10}
    assert sampling == {
        "random_seed": 1,
        "mle": engines.mle,
        "draws": 50,
        "tune": 500,
        "chains": 4,
        "cores": None,
        "progressbar": True,
    }


def test_how_long_and_where_draws_are_kept_is_passed_on(engines, data, tmp_path):
    given = ("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert run(*given, "--max-time", "2.5", "--store", tmp_path / "s").exit_code == 0
    sampling = engines.calls[-1][3]
    assert (sampling["max_time"], sampling["store"]) == (2.5, tmp_path / "s")
    assert sampling["overwrite"] is False
    engines.post = fake_fit(stop_reason="time limit")
    result = run(*given, "--max-time", 1, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "store" not in engines.calls[-1][3]


def test_demo_needs_no_data_and_may_be_run_again(engines, tmp_path):
    for _ in range(2):
        result = run("demo", "-o", tmp_path, "--seed", 7)
        assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    _, spec, frame, options = engines.calls[0]
    assert frame.shape == (272, 2)
    assert spec.n_components == 2
    assert options["random_seed"] == 7


def test_fit_prints_the_estimates_and_saves(engines, data, tmp_path):
    out = tmp_path / "out"
    result = run("fit", data, "-k", 3, "--covariance", "diag", "-o", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["parameter", "estimate", "se"]
    assert lines[1].split() == ["mean[0,", "a]", "1", "0.5"]
    assert "loglik -3.25, aic -3.25" in result.stdout
    assert "ok: all 1 checks passed" in result.stdout
    assert (out / "mle.nc").exists()
    assert str(engines.calls[0][1].covariance) == "VVI"


@pytest.mark.parametrize(("mle", "post", "code"), [(OK, OK, 0), (BAD, OK, 1), (OK, BAD, 1)])
def test_a_verdict_that_is_not_ok_is_exit_code_1(engines, data, tmp_path, mle, post, code):
    engines.mle, engines.post = fake_fit(mle), fake_fit(post)
    result = run("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == code
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArgumentError("n_starts", "must be 1 or more"), 2, "error: --n-starts: must be 1 or more"),
        (ArgumentError("n_components", "no"), 2, "error: -k: no"),
        (MissingValueError("X has 1 missing value"), 3, "error: X has 1 missing value"),
        (NumericalError("all starts failed"), 4, "error: all starts failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "No space left"),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_message(
    engines, data, tmp_path, error, code, message
):
    engines.error = error
    result = run("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_where_an_error_was_raised(engines, data, tmp_path):
    engines.error = NumericalError("all starts failed")
    result = run("fit", data, "-k", 2, "-o", tmp_path / "out", "--debug")
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: all starts failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "0"], "-k: must be an integer of at least 1"),
        (["-k", "2", "--covariance", "XYZ"], "--covariance: 'XYZ' is not a covariance family"),
        (["-k", "2", "--columns", "a,c"], "--columns: "),
        (["-k", "2", "--columns", "a,,b"], "is not a list of names"),
        (["-k", "2", "--columns", ""], "is not a list of names"),
        (["-k", "2", "--columns", "a,a"], "chosen twice"),
        (["-k", "2", "--decimal", ";"], "--decimal: must be"),
        (["-k", "2", "--separator", ";;"], "--separator: must be one character"),
        (["-k", "2", "--encoding", "klingon"], "--encoding: 'klingon' is not known"),
        ([], "Missing option"),
        (["-k", "two"], "unable to parse"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_named(engines, data, tmp_path, arguments, message):
    result = run("fit", data, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert engines.calls == []


def test_prior_is_passed_on_and_checked(engines, data, tmp_path):
    assert run("compare", data, "-k", 2, "-o", tmp_path / "x", "--prior", "vague").exit_code == 2
    assert (
        run("compare", data, "-k", 2, "-o", tmp_path / "y", "--prior", "separation").exit_code == 0
    )
    assert type(engines.calls[0][1].prior).__name__ == "SeparationPrior"


def test_earlier_results_are_not_replaced_unasked(engines, data, tmp_path):
    out = tmp_path / "out"
    assert run("fit", data, "-k", 2, "-o", out).exit_code == 0
    result = run("fit", data, "-k", 2, "-o", out)
    assert result.exit_code == 2
    assert "already holds mle.nc; pass --overwrite" in result.stderr
    assert len(engines.calls) == 1
    assert run("fit", data, "-k", 2, "-o", out, "--overwrite").exit_code == 0


def test_results_cannot_go_where_a_file_is(engines, data):
    result = run("fit", data, "-k", 2, "-o", data)
    assert result.exit_code == 2
    assert "--out: " in result.stderr
    assert data.read_text() == TABLE


def test_an_interrupted_fit_is_kept_but_not_sampled_on(engines, data, tmp_path):
    engines.mle = fake_fit(BAD, stop_reason="interrupted")
    result = run("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert (tmp_path / "out" / "mle.nc").exists()
    assert [call[0] for call in engines.calls] == ["fit_em"]


def test_an_interrupted_sampling_is_compared_and_says_so(engines, data, tmp_path):
    engines.post = fake_fit(BAD, stop_reason="interrupted")
    result = run("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert (tmp_path / "out" / "report.html").exists()


def test_names_from_files_cannot_command_the_terminal(engines, data, tmp_path):
    result = run("fit", data, "-k", 2, "-o", tmp_path / "1")
    assert "\x1b" not in result.output
    assert "\\x1b[31mred" in result.stdout
    engines.error = DataError("column '\x1b]0;owned\x07\u202e' is constant")
    result = run("fit", data, "-k", 2, "-o", tmp_path / "2")
    assert result.exit_code == 3
    assert "\x1b" not in result.stderr
    assert "\u202e" not in result.stderr


def test_excel_safe_quotes_what_begins_like_a_formula(engines, data, tmp_path):
    run("compare", data, "-k", 2, "-o", tmp_path / "out", "--excel-safe")
    assert (tmp_path / "out" / "comparison.csv").read_text() == "label,estimate\n'=cmd(),1.5\n"
    assert [p.name for p in (tmp_path / "out").glob(".*")] == []


def test_warnings_are_one_plain_message_each(engines, data, tmp_path, monkeypatch):
    fit_em = engines.fit_em

    def warning_fit(*arguments, **options):
        warnings.warn(DataWarning("tied-rows", "3 rows are equal"), stacklevel=1)
        warnings.warn(FitWarning("fit-not-good", "see the verdict"), stacklevel=1)
        return fit_em(*arguments, **options)

    monkeypatch.setattr(sys.modules["bayesgmm.em.fit"], "fit_em", warning_fit)
    result = run("fit", data, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.strip() == "warning: [tied-rows] 3 rows are equal"


def test_columns_beside_the_data_are_passed_on(engines, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,known,b,count\n1,0,2,1\n3,,4.5,2\n-1e3,1,.5,3\n2,-1,,1\n")
    beside = ["--labels", "known", "--weights", "count", "--missing", "marginalise"]
    result = run("fit", path, "-k", 2, "-o", tmp_path / "out", *beside)
    assert result.exit_code == 0, result.output
    _, _, frame, options = engines.calls[0]
    assert list(frame.columns) == ["a", "b"]
    assert options["missing"] == "marginalise"
    np.testing.assert_array_equal(options["labels"], [0, np.nan, 1, -1])
    np.testing.assert_array_equal(options["sample_weight"], [1, 2, 3, 1])
    assert run("fit", path, "-k", 2, "-o", tmp_path / "2", "--columns", "b,a", *beside[:2])
    assert list(engines.calls[1][2].columns) == ["b", "a"]
    for option in ("--labels", "--weights"):
        result = run("fit", path, "-k", 2, "-o", tmp_path / "3", option, "nowhere")
        assert result.exit_code == 2
        assert f"error: {option}: " in result.stderr
        assert "has no column 'nowhere'" in " ".join(result.stderr.split())


def test_compare_tells_both_engines_the_same(engines, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,count,known\n1,2,1,0\n3,,2,\n-1e3,.5,3,1\n")
    options = ["--missing", "marginalise", "--weights", "count", "--labels", "known", "--noise"]
    result = run("compare", path, "-k", 2, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    (_, spec, whole, of_em), (_, other, same, of_nuts) = engines.calls
    assert spec == other
    assert spec.has_noise
    assert whole is same
    assert list(whole.columns) == ["a", "b"]
    for name in ("missing", "labels", "sample_weight"):
        assert of_em[name] is of_nuts[name]


def test_what_both_engines_warn_of_is_said_once(engines, data, tmp_path, monkeypatch):
    def warning(function):
        def call(*arguments, **options):
            warnings.warn(DataWarning("tied-rows", "3 rows are equal"), stacklevel=1)
            return function(*arguments, **options)

        return call

    for module, name in (("em.fit", "fit_em"), ("posterior.bayes", "sample_posterior")):
        whole = sys.modules[f"bayesgmm.{module}"]
        monkeypatch.setattr(whole, name, warning(getattr(whole, name)))
    result = run("compare", data, "-k", 2, "-o", tmp_path / "out")
    assert result.stderr.count("3 rows are equal") == 1


def test_version(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, "bayesgmm 9.9.9\n")


def test_help_loads_no_engine():
    code = (
        "import sys, bayesgmm.cli as c\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(c.app, ['compare', '--help']).exit_code == 0\n"
        "heavy = {'numpy', 'pandas', 'xarray', 'numba', 'pymc', 'arviz', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


# Files


def read(tmp_path, content, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_table(path, **options)


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace(",", "|"),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        "\n" + TABLE.replace("\n", "\n\n"),
        TABLE.replace(",", ", "),
        TABLE.removesuffix("\n"),
        '"a","b"\n"1","2"\n"3","4.5"\n"-1e3",".5"\n',
        b"\xef\xbb\xbf" + TABLE.encode(),
        TABLE.encode("utf-16"),
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        TABLE.encode("utf-32"),
    ],
)
def test_all_that_is_unambiguous_is_read(tmp_path, content):
    frame = read(tmp_path, content)
    expected = pd.DataFrame({"a": [1.0, 3.0, -1000.0], "b": [2.0, 4.5, 0.5]})
    pd.testing.assert_frame_equal(frame.astype(float), expected)


def test_options_settle_what_is_ambiguous(tmp_path):
    german = "größe;b\n1,5;2\n2,5;3\n"
    frame = read(tmp_path, german.encode("cp1252"), encoding="cp1252", decimal=",")
    assert frame.to_dict("list") == {"größe": [1.5, 2.5], "b": [2, 3]}
    spaced = read(tmp_path, "a  b\n1  2\n3 4\n", separator=" ")
    assert spaced.to_dict("list") == {"a": [1, 3], "b": [2, 4]}
    one = read(tmp_path, "time of day\n1\n2\n", separator=",")
    assert one.to_dict("list") == {"time of day": [1, 2]}


def test_numbers_are_read_to_the_last_bit(tmp_path):
    x = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-250, 250)
    frame = read(tmp_path, "x\n" + "\n".join(map(repr, x.tolist())))
    np.testing.assert_array_equal(frame["x"].to_numpy(), x)


def test_columns_are_chosen_by_name_and_the_others_may_hold_anything(tmp_path):
    content = ",id,x,y\n1,setosa,0.5,1\n2,?,1.5,2\n"
    frame = read(tmp_path, content, columns=["y", "x"])
    assert frame.to_dict("list") == {"y": [1, 2], "x": [0.5, 1.5]}
    assert list(frame.columns) == ["y", "x"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", EmptyDataError, "the file is empty"),
        ("\n \n", EmptyDataError, "the file is empty"),
        ("a,b\n", EmptyDataError, "no rows"),
        ("a,b\n1,2\n\n3,4,5\n", ShapeError, "line 4 has 3 cells, the header has 2; row names"),
        ("a,b\n1,2\n3\n", ShapeError, "line 3 has 1 cells"),
        ("a,b\n1,5,2,5\n", ShapeError, "decimal commas?"),
        ('a,b\n"1,2\n3,4\n', DataError, "quotation mark"),
        ("a,b,a\n1,2,3\n", ColumnNameError, "several columns are called 'a'"),
        ("a, a\n1,2\n", ColumnNameError, "several columns are called 'a'"),
        ("1.5,2\n1,2\n", ColumnNameError, "the first line holds numbers ('1.5', '2')"),
        (",a\n1,2\n", ColumnNameError, "column 1 has no name"),
        ("a;b\n1,5;2\n", NonNumericError, "'1,5' in line 2); this is a decimal comma"),
        ("a;b\n1,500;2\n", NonNumericError, "if it separates thousands"),
        ('a,b\n1,2\n3,"1,234,567.5"\n', NonNumericError, "without thousands separators"),
        ("a,b\n1,2\n3,?\n", NonNumericError, "column 'b' holds text (first '?' in line 3); if"),
        ("a,s\n1,x\n", NonNumericError, "'x' in line 2); choose the numeric columns: --columns a"),
        ("a,s\n1,True\n", NonNumericError, "column 's' holds text (first 'True' in line 2)"),
        ("a,b\n1,2\n\n1e400,3\n", InfiniteValueError, "line 4, column 'a': 1e400 is beyond"),
        ("a b\n1 2\n", DataError, "pass --separator ' '"),
        (
            b"gr\xf6\xdfe,b\n1,2\n",
            DataError,
            "not utf-8 (byte 0xf6 in line 1); it looks like latin",
        ),
        (b"a,b\n1,2\n3,\x004\n", DataError, "a NUL byte in line 3"),
        (TABLE.encode("utf-16-le"), DataError, "looks like utf-16-le"),
        (TABLE.encode("utf-16-be"), DataError, "looks like utf-16-be"),
        (b"PK\x03\x04......", DataError, "an Excel workbook"),
        (b"\x1f\x8b\x08....", DataError, "a gzip archive"),
        (b"\x80\x04\x95....", DataError, "a Python pickle"),
        (b"PAR1 and then nonsense", DataError, "is damaged or no Parquet file"),
    ],
)
def test_what_is_doubtful_is_refused_with_its_place(tmp_path, content, error, message):
    with pytest.raises(error) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert "t.csv: " in str(caught.value)


def test_a_wrong_encoding_is_named(tmp_path):
    with pytest.raises(DataError, match=r"is not ascii \(byte 0xc3 in line 1\)"):
        read(tmp_path, "größe,b\n1,2\n", encoding="ascii")


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read"):
        load_table(tmp_path / "nowhere.csv")
    result = run("fit", tmp_path / "nowhere.csv", "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == 3


def test_parquet_is_read_by_content_and_column(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1.0, 2.0], "s": ["x", "y"], "b": [3.0, 4.0]})
    frame.to_parquet(tmp_path / "odd.name")
    found = load_table(tmp_path / "odd.name", columns=["b", "a"])
    pd.testing.assert_frame_equal(found, frame[["b", "a"]])
    with pytest.raises(ArgumentError, match="no column 'c'"):
        load_table(tmp_path / "odd.name", columns=["c"])


# The real thing


def test_fit_for_real(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    faithful = Path(cli.__file__).parent / "datasets" / "faithful.csv"
    result = run("fit", faithful, "-k", 2, "-o", tmp_path / "out", "--n-starts", 4)
    assert result.exit_code == 0, result.output
    assert "weight[0]" in result.stdout
    assert result.stdout.splitlines()[-1] == f"fit: {tmp_path / 'out' / 'mle.nc'}"
    with xr.open_datatree(tmp_path / "out" / "mle.nc") as tree:
        assert json.loads(tree.attrs["verdict"])["status"] == "ok"


def test_recover_for_real(tmp_path):
    from bayesgmm import GaussianMixture, load, sample_posterior
    from bayesgmm.errors import PosteriorWarning

    settings = {"draws": 30, "tune": 30, "chains": 2, "random_seed": 1}
    x = np.random.default_rng(1).normal(size=(40, 1))
    with pytest.warns(PosteriorWarning):
        post = sample_posterior(GaussianMixture(1, "E"), x, store=tmp_path / "s", **settings)
    result = run("recover", tmp_path / "s", "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output  # far too few draws
    assert "2 chains of 30 draws, completed" in result.stdout
    again = load(tmp_path / "out" / "posterior.nc")
    xr.testing.assert_identical(again["posterior"].to_dataset(), post["posterior"].to_dataset())
    result = run("recover", tmp_path, "-o", tmp_path / "out2")
    assert (result.exit_code, result.stderr.split(":")[1]) == (2, " --store")


def test_select_for_real(tmp_path):
    faithful = Path(cli.__file__).parent / "datasets" / "faithful.csv"
    out = tmp_path / "out"
    options = ["-k", 3, "--covariance", "EEE,VVV", "--n-starts", 4, "-o", out]
    result = run("select", faithful, *options)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "selection.csv")
    assert len(table) == 6
    assert table["bic"].is_monotonic_increasing
    assert (table["covariance"][0], table["n_components"][0]) == ("EEE", 3)
    assert (out / "selection.png").read_bytes()[:4] == b"\x89PNG"
    assert result.stdout.splitlines()[-1] == f"best fit: {out / 'mle.nc'}"
    with xr.open_datatree(out / "mle.nc") as tree:
        assert tree["criteria"]["bic"].item() == pytest.approx(table["bic"][0], rel=1e-12)
    again = run("select", faithful, *options)
    assert again.exit_code == 2
    assert "already holds selection.csv, selection.png, mle.nc" in " ".join(again.stderr.split())
    for wrong, message in (
        (["--criterion", "dic"], "--criterion: must be one of"),
        (["--min-components", 4], "--max-components: is below --min-components 4"),
        (["--covariance", "EEE,,"], "--covariance: 'EEE,,' is not a list"),
    ):
        result = run("select", faithful, *options[:-1], tmp_path / "x", *wrong)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_a_selection_of_nothing_is_exit_code_1(tmp_path):
    """Four groups of equal rows: four components have no usable optimum."""
    path = tmp_path / "t.csv"
    path.write_text("x\n" + "\n".join(map(str, np.repeat([0.0, 1.0, 3.0, 7.0], 5))))
    options = ["--min-components", 4, "-k", 4, "--covariance", "V", "-o", tmp_path / "out"]
    result = run("select", path, *options)
    assert result.exit_code == 1, result.output
    assert "nothing-selected" in result.stderr
    assert "fail" in result.stdout
    assert not (tmp_path / "out" / "mle.nc").exists()
