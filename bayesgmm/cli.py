"""The command line: ``bayesgmm demo``, ``fit`` and ``compare``.

Exit codes: 0 good; 1 finished, but a fit should not be relied on (its verdict is not ok); 2 wrong
usage; 3 data that no mixture can be fitted to; 4 the computation failed; 130 interrupted.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bayesgmm.errors import ArgumentError, BayesgmmError, BayesgmmWarning, DataError
from bayesgmm.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from bayesgmm.mixture import GaussianMixture

# Engines, ArviZ and pandas are imported where a command needs them: --help is quick.


class Exit(IntEnum):
    """What the exit code says."""

    GOOD = 0
    NOT_GOOD = 1
    USAGE = 2
    DATA = 3
    NUMERICAL = 4
    INTERRUPTED = 130


app = typer.Typer(
    name="bayesgmm",
    help="Gaussian mixtures by EM and by NUTS, and the two compared.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path, typer.Argument(metavar="DATA", help="CSV (with a header line) or Parquet file.")
]
Columns = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Columns to use. Default: all.")
]
Components = Annotated[int, typer.Option("-k", "--components", help="Number of components.")]
Family = Annotated[
    str, typer.Option(help="Covariance family: VVV, EEE, VVI, ... or full, tied, diag, spherical.")
]
PriorName = Annotated[str, typer.Option(help="Prior: conjugate or separation.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Starts = Annotated[int, typer.Option(help="Number of EM starts.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results there.")]
Draws = Annotated[int, typer.Option(help="Posterior draws per chain.")]
Tune = Annotated[int, typer.Option(help="Tuning steps per chain.")]
Chains = Annotated[int, typer.Option(help="Number of chains.")]
Cores = Annotated[int | None, typer.Option(help="Chains at the same time. Default: as many cores.")]
Decimal = Annotated[str, typer.Option(help="Decimal mark of a CSV file.")]
Separator = Annotated[str | None, typer.Option(help="Cell separator of a CSV file.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a CSV file. Default: UTF-8.")]
ExcelSafe = Annotated[
    bool,
    typer.Option("--excel-safe", help="Quote cells of comparison.csv that begin like formulas."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bayesgmm {version('bayesgmm')}")
        raise typer.Exit(Exit.GOOD)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    data: File,
    components: Components,
    out: Out,
    covariance: Family = "VVV",
    columns: Columns = None,
    seed: Seed = 1,
    n_starts: Starts = 10,
    overwrite: Overwrite = False,
    decimal: Decimal = ".",
    separator: Separator = None,
    encoding: Encoding = None,
    debug: Debug = False,
) -> None:
    """Fit by maximum likelihood (EM); write OUT/mle.nc and print the estimates."""
    with _told_plainly(debug):
        from bayesgmm.fit import fit_em
        from bayesgmm.mixture import GaussianMixture
        from bayesgmm.tree import save

        spec = GaussianMixture(components, covariance)
        _prepare(out, ("mle.nc",), overwrite)
        frame = _load(data, columns, decimal, separator, encoding)
        mle = fit_em(spec, frame, random_seed=seed, n_starts=n_starts)
        save(mle, out / "mle.nc")
        _say(_estimates(mle))
        _say(f"fit: {out / 'mle.nc'}")
        _finish(mle)


@app.command()
def compare(
    data: File,
    components: Components,
    out: Out,
    covariance: Family = "VVV",
    columns: Columns = None,
    prior: PriorName = "conjugate",
    seed: Seed = 1,
    n_starts: Starts = 10,
    draws: Draws = 1000,
    tune: Tune = 1000,
    chains: Chains = 4,
    cores: Cores = None,
    overwrite: Overwrite = False,
    excel_safe: ExcelSafe = False,
    decimal: Decimal = ".",
    separator: Separator = None,
    encoding: Encoding = None,
    debug: Debug = False,
) -> None:
    """Fit by EM, sample the posterior by NUTS, and compare the two.

    Writes report.html, comparison.csv, mle.nc and posterior.nc to OUT.
    """
    with _told_plainly(debug):
        from bayesgmm.mixture import GaussianMixture

        spec = GaussianMixture(components, covariance, prior)
        _prepare(out, RESULTS, overwrite)
        frame = _load(data, columns, decimal, separator, encoding)
        sampling = {"draws": draws, "tune": tune, "chains": chains, "cores": cores}
        _compare(spec, frame, out, seed, n_starts, sampling, excel_safe)


@app.command()
def demo(
    out: Out = Path("bayesgmm-demo"),
    seed: Seed = 1,
    draws: Draws = 1000,
    tune: Tune = 1000,
    chains: Chains = 4,
    cores: Cores = None,
    debug: Debug = False,
) -> None:
    """Compare the two on the eruptions of Old Faithful; earlier results are replaced."""
    with _told_plainly(debug):
        from bayesgmm import datasets
        from bayesgmm.mixture import GaussianMixture

        _prepare(out, RESULTS, overwrite=True)
        sampling = {"draws": draws, "tune": tune, "chains": chains, "cores": cores}
        spec = GaussianMixture(2, "VVV")
        _compare(spec, datasets.load("faithful"), out, seed, 10, sampling, excel_safe=False)


RESULTS = ("report.html", "comparison.csv", "mle.nc", "posterior.nc")


def _compare(
    spec: GaussianMixture,
    frame: pd.DataFrame,
    out: Path,
    seed: int,
    n_starts: int,
    sampling: dict[str, Any],
    excel_safe: bool,
) -> None:
    from bayesgmm.mixture import refuse_unsupported

    refuse_unsupported(spec)  # before EM is run for nothing
    _say("fitting by EM ...", sys.stderr)
    from bayesgmm.fit import fit_em
    from bayesgmm.tree import save

    mle = fit_em(spec, frame, random_seed=seed, n_starts=n_starts)
    save(mle, out / "mle.nc")
    _stop_if_interrupted(mle)
    _say("compiling and sampling by NUTS ...", sys.stderr)
    from bayesgmm.bayes import sample_posterior

    post = sample_posterior(spec, frame, random_seed=seed, mle=mle, **sampling)
    save(post, out / "posterior.nc")
    from bayesgmm import comparison as comparing
    from bayesgmm.page import report

    comparison = comparing.compare(mle, post)
    _write_csv(comparing.to_frame(comparison), out / "comparison.csv", excel_safe)
    report(comparison, out / "report.html", mle=mle, post=post)
    width = shutil.get_terminal_size((132, 24)).columns if sys.stdout.isatty() else 132
    _say(comparing.format_table(comparison, width=max(width, 80)))
    _say(f"fits: {out / 'mle.nc'}, {out / 'posterior.nc'}; table: {out / 'comparison.csv'}")
    _say(f"report: {out / 'report.html'}")
    _finish(mle, post)


# Input and output


def _load(
    file: Path,
    columns: str | None,
    decimal: str,
    separator: str | None,
    encoding: str | None,
) -> pd.DataFrame:
    from bayesgmm.tablefile import load_table

    chosen: Sequence[str] | None = None
    if columns is not None:
        # As a line of CSV, so that a name with a comma can be quoted.
        chosen = [name.strip() for name in next(csv.reader([columns], skipinitialspace=True), [])]
        if not all(chosen) or not chosen:
            raise ArgumentError("columns", f"{columns!r} is not a list of names: a,b,...")
    return load_table(file, columns=chosen, decimal=decimal, separator=separator, encoding=encoding)


def _prepare(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Make the folder, before hours are spent on results that it cannot take."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            "out", f"{out} is not a folder that can be made ({error.strerror})"
        ) from (error)
    if not os.access(out, os.W_OK):
        raise ArgumentError("out", f"the folder {out} cannot be written to")
    found = [name for name in names if (out / name).exists()]
    if found and not overwrite:
        raise ArgumentError(
            "out", f"{out} already holds {', '.join(found)}; pass --overwrite or another folder"
        )


def _write_csv(frame: pd.DataFrame, path: Path, excel_safe: bool) -> None:
    """Write a table, whole or not at all."""
    table = frame.reset_index()
    if excel_safe:
        for name in table.columns:
            if table[name].dtype.kind not in "iufb":
                table[name] = [_not_a_formula(str(cell)) for cell in table[name]]
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table.to_csv(stream, index=False)


def _not_a_formula(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _estimates(mle: xr.DataTree) -> str:
    """Return the estimates, criteria and verdict of a fit as lines of text."""
    from bayesgmm.checks import Verdict
    from bayesgmm.rows import summary

    table = summary(mle)
    cells = [["parameter", *map(str, table.columns)]]
    for label, row in zip(table.index, table.to_numpy(), strict=True):
        cells.append([str(label), *(f"{value:.5g}" for value in row)])
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for label, *numbers in cells:
        right = (cell.rjust(w) for cell, w in zip(numbers, width[1:], strict=True))
        lines.append("  ".join([label.ljust(width[0]), *right]))
    criteria = mle["criteria"].dataset
    shown = [f"{name} {criteria[name].item():.10g}" for name in ("loglik", "aic", "bic", "icl")]
    verdict = Verdict.from_json(str(mle.attrs["verdict"]))
    return "\n".join(
        [*lines, "", f"{', '.join(shown)} (criteria: smaller is better)", f"{verdict}"]
    )


def _say(text: str, stream: TextIO | None = None) -> None:
    stream = sys.stdout if stream is None else stream
    print(_printable(text), file=stream, flush=True)


def _printable(text: str) -> str:
    """Return text without what a terminal would obey: names and cells come from files."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


# The end


def _stop_if_interrupted(*fits: xr.DataTree) -> None:
    """Leave with 130 if Ctrl-C cut a fit short: the engines return what they had by then."""
    for tree in fits:
        reasons = [tree.attrs.get("stop_reason", "")]
        if "starts" in tree.children:
            reasons += tree["starts"].dataset["reason"].values.tolist()
        if "interrupted" in reasons:
            raise KeyboardInterrupt


def _finish(*fits: xr.DataTree) -> None:
    from bayesgmm.checks import Verdict

    _stop_if_interrupted(*fits)
    if any(Verdict.from_json(str(tree.attrs["verdict"])).status != "ok" for tree in fits):
        raise typer.Exit(Exit.NOT_GOOD)


@contextmanager
def _told_plainly(debug: bool) -> Iterator[None]:
    """Turn errors into one message and an exit code, and warnings into one message each."""
    show = warnings.showwarning

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not isinstance(message, BayesgmmWarning):
            show(message, category, filename, lineno, file, line)
        elif not message.code.endswith("-not-good"):  # the verdict, which is printed anyway
            _say(f"warning: {message}", sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", BayesgmmWarning)
            warnings.showwarning = show_plainly
            yield
    except KeyboardInterrupt:
        _say("interrupted", sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except (BayesgmmError, OSError) as error:
        if debug:
            traceback.print_exc()
        text = str(error)
        if isinstance(error, ArgumentError):
            text = f"{_option(error.argument)}: {error.message}"
        _say(f"error: {text}", sys.stderr)
        raise typer.Exit(_code(error)) from None


def _code(error: BayesgmmError | OSError) -> Exit:
    if isinstance(error, DataError):
        return Exit.DATA
    if isinstance(error, ArgumentError | OSError):  # a path that cannot be written, a full disk
        return Exit.USAGE
    return Exit.NUMERICAL


def _option(argument: str) -> str:
    """Return an argument's name as it is spelled on the command line."""
    spelled = {"n_components": "-k", "random_seed": "--seed", "path": "--out"}
    return spelled.get(argument, f"--{argument.replace('_', '-')}")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
