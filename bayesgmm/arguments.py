"""Checks of single arguments that several functions share."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from bayesgmm.errors import ArgumentError


def whole_number(name: str, value: Any, *, least: int) -> int:
    """Return ``value`` as an int.

    Raises
    ------
    ArgumentError
        Naming the argument, if it is not an integer of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ArgumentError(name, f"must be an integer of at least {least}, not {value!r}")
    return int(value)


def share(name: str, value: Any) -> float:
    """Return ``value`` as a float.

    Raises
    ------
    ArgumentError
        Naming the argument, if it is not a number strictly between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < 1.0:
        raise ArgumentError(name, f"must be a number between 0 and 1, not {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Return ``value`` as a float.

    Raises
    ------
    ArgumentError
        Naming the argument, if it is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < math.inf:
        raise ArgumentError(name, f"must be a number above 0, not {value!r}")
    return float(value)
