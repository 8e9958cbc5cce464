"""Small data sets to try things with; each one's origin is told in the README beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from bayesgmm.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load", "names"]


def names() -> tuple[str, ...]:
    """Return the names of the data sets, in alphabetical order.

    Returns
    -------
    tuple of str
        The names that :func:`load` knows.

    Examples
    --------
    >>> from bayesgmm import datasets
    >>> datasets.names()
    ('faithful',)
    """
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".csv") for name in found if name.endswith(".csv")))


def load(name: str = "faithful") -> pd.DataFrame:
    """Load a data set that comes with the package.

    Parameters
    ----------
    name : str, default "faithful"
        Name of the data set, one of :func:`names`.

    Returns
    -------
    pandas.DataFrame
        One row per observation, one column per feature.

    Raises
    ------
    bayesgmm.errors.ArgumentError
        If there is no data set of that name.

    Examples
    --------
    >>> from bayesgmm import datasets
    >>> datasets.load("faithful").shape
    (272, 2)
    """
    known = names()
    if name not in known:
        raise ArgumentError("name", f"there is no data set {name!r}; there is {', '.join(known)}")
    import pandas as pd

    with files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
