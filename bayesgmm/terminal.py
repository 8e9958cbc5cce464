"""What every command has in common: files in and out, plain words, and exit codes."""

from __future__ import annotations

import csv
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from bayesgmm.errors import ArgumentError, BayesgmmError, BayesgmmWarning, DataError
from bayesgmm.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

# Engines, ArviZ and pandas are imported where a command needs them: --help is quick.


class Exit(IntEnum):
    """What the exit code says."""

    GOOD = 0
    NOT_GOOD = 1
    USAGE = 2
    DATA = 3
    NUMERICAL = 4
    INTERRUPTED = 130


# Input and output


@dataclass(frozen=True, eq=False)
class Input:
    """A table, and what else is said of its rows: arguments of `fit_em`, those that were given."""

    frame: pd.DataFrame
    known: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A file, and how it is read.

    Parameters
    ----------
    file : Path
    columns : str or None
        Names, separated by commas. None: all but those below.
    labels, weights : str or None
        Columns of what is known of the rows' components, and of their weights.
    missing : str
        What is done about empty cells.
    decimal : str
    separator, encoding : str or None
    """

    file: Path
    columns: str | None = None
    labels: str | None = None
    weights: str | None = None
    missing: str = "error"
    decimal: str = "."
    separator: str | None = None
    encoding: str | None = None

    def read(self) -> Input:
        """Return the table."""
        beside = {"labels": self.labels, "sample_weight": self.weights}
        known: dict[str, Any] = {} if self.missing == "error" else {"missing": self.missing}
        for argument, name in beside.items():
            if name is not None:
                known[argument] = self._column(argument, name)
        frame = self._load(None if self.columns is None else names_in(self.columns))
        if self.columns is None:
            frame = frame.drop(columns=[name for name in beside.values() if name is not None])
        return Input(frame, known)

    def _load(self, columns: Sequence[str] | None) -> pd.DataFrame:
        from bayesgmm.data.tablefile import load_table

        return load_table(
            self.file,
            columns=columns,
            decimal=self.decimal,
            separator=self.separator,
            encoding=self.encoding,
        )

    def _column(self, argument: str, name: str) -> pd.Series[Any]:
        try:
            return self._load([name])[name]
        except ArgumentError as error:
            if error.argument != "columns":
                raise
            raise ArgumentError(argument, error.message) from None


def names_in(text: str, argument: str = "columns") -> list[str]:
    """Return the names in a list that is separated by commas."""
    # As a line of CSV, so that a name with a comma can be quoted.
    found = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not all(found) or not found:
        raise ArgumentError(argument, f"{text!r} is not a list of names: a,b,...")
    return found


def prepare(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Make the folder, before hours are spent on results that it cannot take."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            "out", f"{out} is not a folder that can be made ({error.strerror})"
        ) from error
    if not os.access(out, os.W_OK):
        raise ArgumentError("out", f"the folder {out} cannot be written to")
    found = [name for name in names if (out / name).exists()]
    if found and not overwrite:
        raise ArgumentError(
            "out", f"{out} already holds {', '.join(found)}; pass --overwrite or another folder"
        )


def write_csv(frame: pd.DataFrame, path: Path, excel_safe: bool) -> None:
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


def estimates(fit: xr.DataTree) -> str:
    """Return the summary, criteria and verdict of a fit as lines of text."""
    from bayesgmm.checks import Verdict
    from bayesgmm.rows import summary

    table = summary(fit)
    cells = [["parameter", *map(str, table.columns)]]
    for label, row in zip(table.index, table.to_numpy(), strict=True):
        cells.append([str(label), *(f"{value:.5g}" for value in row)])
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for label, *numbers in cells:
        right = (cell.rjust(w) for cell, w in zip(numbers, width[1:], strict=True))
        lines.append("  ".join([label.ljust(width[0]), *right]))
    criteria = fit["criteria"].dataset if "criteria" in fit.children else {}
    names = [name for name in ("loglik", "aic", "bic", "icl", "elpd_loo") if name in criteria]
    shown = ", ".join(f"{name} {criteria[name].item():.10g}" for name in names)
    if "bic" in names:
        shown += " (criteria: smaller is better)"
    verdict = Verdict.from_json(str(fit.attrs["verdict"]))
    return "\n".join([*lines, "", *([shown] if shown else []), f"{verdict}"])


def say(text: str, stream: TextIO | None = None) -> None:
    """Print text, without what a terminal would obey."""
    stream = sys.stdout if stream is None else stream
    print(_printable(text), file=stream, flush=True)


def _printable(text: str) -> str:
    """Return text without what a terminal would obey: names and cells come from files."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


# The end


def stop_if_interrupted(*fits: xr.DataTree) -> None:
    """Leave with 130 if Ctrl-C cut a fit short: the engines return what they had by then."""
    for tree in fits:
        reasons = [tree.attrs.get("stop_reason", "")]
        if "starts" in tree.children:
            reasons += tree["starts"].dataset["reason"].values.tolist()
        if "interrupted" in reasons:
            raise KeyboardInterrupt


def finish(*fits: xr.DataTree) -> None:
    """Leave with 1 if a fit should not be relied on."""
    from bayesgmm.checks import Verdict

    stop_if_interrupted(*fits)
    if any(Verdict.from_json(str(tree.attrs["verdict"])).status != "ok" for tree in fits):
        raise typer.Exit(Exit.NOT_GOOD)


@contextmanager
def told_plainly(debug: bool) -> Iterator[None]:
    """Turn errors into one message and an exit code, and warnings into one message each.

    Both engines read the same table: what both warn of is said once.
    """
    show, told = warnings.showwarning, set[str]()

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
        elif not message.code.endswith("-not-good") and str(message) not in told:
            # Not the verdict, which is printed anyway.
            told.add(str(message))
            say(f"warning: {message}", sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", BayesgmmWarning)
            warnings.showwarning = show_plainly
            yield
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except (BayesgmmError, OSError) as error:
        if debug:
            traceback.print_exc()
        text = str(error)
        if isinstance(error, ArgumentError):
            text = f"{_option(error.argument)}: {error.message}"
        say(f"error: {text}", sys.stderr)
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
    spelled |= {"sample_weight": "--weights"}
    return spelled.get(argument, f"--{argument.replace('_', '-')}")
