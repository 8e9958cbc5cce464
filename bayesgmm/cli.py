"""The command line: ``bayesgmm demo``, ``fit``, ``select``, ``compare`` and ``recover``.

Exit codes: 0 good; 1 finished, but a fit should not be relied on (its verdict is not ok); 2 wrong
usage; 3 data that no mixture can be fitted to; 4 the computation failed; 130 interrupted.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesgmm.errors import ArgumentError
from bayesgmm.files import atomic
from bayesgmm.terminal import (
    Exit,
    Input,
    Source,
    estimates,
    finish,
    names_in,
    prepare,
    say,
    stop_if_interrupted,
    told_plainly,
    write_csv,
)

if TYPE_CHECKING:
    from bayesgmm.mixture import GaussianMixture

# Engines, ArviZ and pandas are imported where a command needs them: --help is quick.

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
    str | None, typer.Option(metavar="A,B,...", help="Columns to use. Default: all others.")
]
Components = Annotated[int, typer.Option("-k", "--components", help="Number of components.")]
Family = Annotated[
    str, typer.Option(help="Covariance family: VVV, EEE, VVI, ... or full, tied, diag, spherical.")
]
PriorName = Annotated[str, typer.Option(help="Prior: conjugate or separation.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same result.")]
Starts = Annotated[int, typer.Option(help="Number of EM starts.")]
MissingCells = Annotated[
    str, typer.Option("--missing", help="Empty cells: error, drop (their rows) or marginalise.")
]
Noise = Annotated[bool, typer.Option("--noise", help="Rows may belong to no component.")]
Known = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="COLUMN",
        help="Column of known components: 0 to k - 1; -1 or empty where unknown.",
    ),
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="COLUMN", help="Column of frequencies.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results there.")]
Draws = Annotated[int, typer.Option(help="Posterior draws per chain.")]
Tune = Annotated[int, typer.Option(help="Tuning steps per chain.")]
Chains = Annotated[int, typer.Option(help="Number of chains.")]
MaxTime = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Stop sampling after so long; what was drawn is kept."),
]
Store = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Keep draws there as they are made: `bayesgmm recover` reads what a killed run had.",
    ),
]
Cores = Annotated[int | None, typer.Option(help="Chains at the same time. Default: as many cores.")]
Decimal = Annotated[str, typer.Option(help="Decimal mark of a CSV file.")]
Separator = Annotated[str | None, typer.Option(help="Cell separator of a CSV file.")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a CSV file. Default: UTF-8.")]
ExcelSafe = Annotated[
    bool, typer.Option("--excel-safe", help="Quote cells of CSV files that begin like formulas.")
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
    noise: Noise = False,
    columns: Columns = None,
    missing: MissingCells = "error",
    labels: Known = None,
    weights: Weights = None,
    seed: Seed = 1,
    n_starts: Starts = 10,
    overwrite: Overwrite = False,
    decimal: Decimal = ".",
    separator: Separator = None,
    encoding: Encoding = None,
    debug: Debug = False,
) -> None:
    """Fit by maximum likelihood (EM); write OUT/mle.nc and print the estimates."""
    with told_plainly(debug):
        from bayesgmm.em.fit import fit_em
        from bayesgmm.mixture import GaussianMixture
        from bayesgmm.tree import save

        spec = GaussianMixture(components, covariance, noise=noise)
        prepare(out, ("mle.nc",), overwrite)
        given = Source(data, columns, labels, weights, missing, decimal, separator, encoding).read()
        mle = fit_em(spec, given.frame, random_seed=seed, n_starts=n_starts, **given.known)
        save(mle, out / "mle.nc")
        say(estimates(mle))
        say(f"fit: {out / 'mle.nc'}")
        finish(mle)


@app.command()
def select(
    data: File,
    out: Out,
    max_components: Annotated[
        int, typer.Option("-k", "--max-components", help="Largest number of components.")
    ] = 9,
    min_components: Annotated[int, typer.Option(help="Smallest number of components.")] = 1,
    covariance: Annotated[
        str, typer.Option(metavar="A,B,...", help="Covariance families, or all.")
    ] = "all",
    criterion: Annotated[str, typer.Option(help="bic, icl or aic.")] = "bic",
    noise: Noise = False,
    columns: Columns = None,
    missing: MissingCells = "error",
    labels: Known = None,
    weights: Weights = None,
    seed: Seed = 1,
    n_starts: Starts = 40,
    cores: Annotated[int, typer.Option(help="Processes.")] = 1,
    overwrite: Overwrite = False,
    excel_safe: ExcelSafe = False,
    decimal: Decimal = ".",
    separator: Separator = None,
    encoding: Encoding = None,
    debug: Debug = False,
) -> None:
    """Fit families and sizes by maximum likelihood and rank them by a criterion.

    Writes selection.csv, selection.png and the best fit, mle.nc, to OUT.
    """
    with told_plainly(debug):
        from bayesgmm.inference.selection import select as chosen_of

        if max_components < min_components:
            raise ArgumentError("max_components", f"is below --min-components {min_components}")
        prepare(out, ("selection.csv", "selection.png", "mle.nc"), overwrite)
        given = Source(data, columns, labels, weights, missing, decimal, separator, encoding).read()
        families = "all" if covariance == "all" else names_in(covariance, "covariance")
        selection = chosen_of(
            given.frame,
            n_components=range(min_components, max_components + 1),
            covariance=families,
            criterion=criterion,  # type: ignore[arg-type]  # checked there
            noise=noise,
            n_starts=n_starts,
            cores=cores,
            random_seed=seed,
            **given.known,
        )
        from bayesgmm.display.plots_em import plot_select
        from bayesgmm.tree import save

        table = selection.table
        write_csv(table, out / "selection.csv", excel_safe)
        with atomic(out / "selection.png") as temporary:
            temporary.write_bytes(plot_select(selection).to_png())
        say(table.to_string(float_format=lambda value: f"{value:.10g}"))
        say(f"table: {out / 'selection.csv'}; picture: {out / 'selection.png'}")
        if (table["status"] == "fail").all():
            raise typer.Exit(Exit.NOT_GOOD)
        best = selection.best
        save(best, out / "mle.nc")
        say("\n" + estimates(best))
        say(f"best fit: {out / 'mle.nc'}")
        if table.attrs["stop_reason"] == "interrupted":
            raise KeyboardInterrupt
        finish(best)


@app.command()
def compare(
    data: File,
    components: Components,
    out: Out,
    covariance: Family = "VVV",
    noise: Noise = False,
    columns: Columns = None,
    missing: MissingCells = "error",
    labels: Known = None,
    weights: Weights = None,
    prior: PriorName = "conjugate",
    seed: Seed = 1,
    n_starts: Starts = 10,
    draws: Draws = 1000,
    tune: Tune = 500,
    chains: Chains = 4,
    cores: Cores = None,
    max_time: MaxTime = None,
    store: Store = None,
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
    with told_plainly(debug):
        from bayesgmm.mixture import GaussianMixture

        spec = GaussianMixture(components, covariance, prior, noise)
        prepare(out, RESULTS, overwrite)
        given = Source(data, columns, labels, weights, missing, decimal, separator, encoding).read()
        sampling: dict[str, Any] = {"draws": draws, "tune": tune, "chains": chains, "cores": cores}
        if max_time is not None:
            sampling["max_time"] = max_time
        if store is not None:
            sampling |= {"store": store, "overwrite": overwrite}
        _compare(spec, given, out, seed, n_starts, sampling, excel_safe)


@app.command()
def recover(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder that --store of a run named.")
    ],
    out: Out,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Make a fit of the draws that a killed, or running, `compare --store` has kept.

    Writes posterior.nc to OUT and prints the summary.
    """
    with told_plainly(debug):
        from bayesgmm.posterior.bayes import recover as recovered
        from bayesgmm.tree import save

        prepare(out, ("posterior.nc",), overwrite)
        post = recovered(store)
        save(post, out / "posterior.nc")
        say(estimates(post))
        sizes = post["posterior"].sizes
        say(f"{sizes['chain']} chains of {sizes['draw']} draws, {post.attrs['stop_reason']}")
        say(f"fit: {out / 'posterior.nc'}")
        finish(post)


@app.command()
def demo(
    out: Out = Path("bayesgmm-demo"),
    seed: Seed = 1,
    draws: Draws = 1000,
    tune: Tune = 500,
    chains: Chains = 4,
    cores: Cores = None,
    debug: Debug = False,
) -> None:
    """Compare the two on the eruptions of Old Faithful; earlier results are replaced."""
    with told_plainly(debug):
        from bayesgmm import datasets
        from bayesgmm.mixture import GaussianMixture

        prepare(out, RESULTS, overwrite=True)
        sampling = {"draws": draws, "tune": tune, "chains": chains, "cores": cores}
        spec, given = GaussianMixture(2, "VVV"), Input(datasets.load("faithful"))
        _compare(spec, given, out, seed, 10, sampling, excel_safe=False)


RESULTS = ("report.html", "comparison.csv", "mle.nc", "posterior.nc")


def _compare(
    spec: GaussianMixture,
    given: Input,
    out: Path,
    seed: int,
    n_starts: int,
    sampling: dict[str, Any],
    excel_safe: bool,
) -> None:
    say("fitting by EM ...", sys.stderr)
    from bayesgmm.em.fit import fit_em
    from bayesgmm.tree import save

    mle = fit_em(spec, given.frame, random_seed=seed, n_starts=n_starts, **given.known)
    save(mle, out / "mle.nc")
    stop_if_interrupted(mle)
    say("compiling and sampling by NUTS ...", sys.stderr)
    from bayesgmm.posterior.bayes import sample_posterior

    sampling = {"random_seed": seed, "mle": mle, "progressbar": True, **given.known, **sampling}
    post = sample_posterior(spec, given.frame, **sampling)
    save(post, out / "posterior.nc")
    from bayesgmm.display import comparison as comparing
    from bayesgmm.display import words
    from bayesgmm.display.page import report

    comparison = comparing.compare(mle, post)
    write_csv(words.to_frame(comparison), out / "comparison.csv", excel_safe)
    report(comparison, out / "report.html", mle=mle, post=post)
    width = shutil.get_terminal_size((132, 24)).columns if sys.stdout.isatty() else 132
    say(words.format_table(comparison, width=max(width, 80)))
    say(f"fits: {out / 'mle.nc'}, {out / 'posterior.nc'}; table: {out / 'comparison.csv'}")
    say(f"report: {out / 'report.html'}")
    finish(mle, post)


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
