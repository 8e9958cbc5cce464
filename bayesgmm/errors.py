"""Every error and warning of the package: what is wrong, where, and what to do about it.

Errors name the argument, column or row at fault.  Warnings carry a stable ``code``, the evidence
and a remedy, and are also collected on the fit that they concern.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Where this package's code is: warnings point at the line that called it.
PACKAGE = os.path.dirname(__file__) + os.sep


class BayesgmmError(Exception):
    """Base of all errors that the package raises on purpose."""


class ArgumentError(BayesgmmError, ValueError):
    """A wrong argument, named.

    Parameters
    ----------
    argument : str
        Name of the argument as the caller wrote it.
    message : str
        What is wrong with it and what would be right.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(argument, message)
        self.argument = argument
        self.message = message

    def __str__(self) -> str:
        return f"{self.argument}: {self.message}"


class NotYetSupportedError(ArgumentError):
    """A combination that is sound but that this version cannot do; the message says what can."""


class DataError(BayesgmmError, ValueError):
    """Data that no mixture can be fitted to as they are; the message names columns and rows."""


class ShapeError(DataError):
    """Not a table of observations by features."""


class EmptyDataError(DataError):
    """No rows or no columns."""


class NonNumericError(DataError):
    """Text, categories, dates, booleans-as-objects or numbers that do not fit a float."""


class MissingValueError(DataError):
    """NaN or NA cells."""


class InfiniteValueError(DataError):
    """Infinite cells."""


class ColumnNameError(DataError):
    """Duplicate, missing or unexpected column names."""


class ConstantColumnError(DataError):
    """A column, or all columns, without variation."""


class CollinearColumnsError(DataError):
    """A column that is a linear combination of others."""


class TooFewRowsError(DataError):
    """Fewer distinct rows than components, or a single row."""


class ScaleError(DataError):
    """Numbers too large or too small for their squares to be represented."""


class WeightError(DataError):
    """Observation weights that are negative, not finite, all zero, or of the wrong length."""


class StorageError(BayesgmmError, OSError):
    """No room on disk for data that do not fit into memory."""


class NumericalError(BayesgmmError, ArithmeticError):
    """The computation itself failed: no usable optimum, or a sampler that could not start."""


class BayesgmmWarning(UserWarning):
    """A fit that should not be trusted as it is, or data that make it hard.

    Parameters
    ----------
    code : str
        Stable identifier, for filters and for the ``warnings`` attribute of a fit.
    message : str
        What, the evidence, the consequence and the remedy.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class DataWarning(BayesgmmWarning):
    """Data that a mixture can be fitted to, with a caution."""


class FitWarning(BayesgmmWarning):
    """A maximum-likelihood fit with a caution."""


class PosteriorWarning(BayesgmmWarning):
    """Posterior draws with a caution."""


@contextmanager
def collected() -> Iterator[list[BayesgmmWarning]]:
    """Collect the package's warnings in a list, to keep on a fit; all are given as usual after."""
    found: list[BayesgmmWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [w.message for w in caught if isinstance(w.message, BayesgmmWarning)]
    for w in caught:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def to_json(notes: list[BayesgmmWarning]) -> str:
    """Return warnings as a JSON list of codes and messages."""
    return json.dumps([{"code": w.code, "message": w.message} for w in notes])
