"""Markdown: numbers as people read them, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose cells are aligned to the right where all are numbers."""
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in head]
    rule = ["---:" if column and all(map(_is_number, column)) else "---" for column in columns]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _is_number(cell: object) -> bool:
    return str(cell)[:1].isdigit() or str(cell)[:1] in ("", "-", "–", "<")


def whole(value: float) -> str:
    """Return a count, thousands apart."""
    return f"{value:,.0f}".replace(",", " ")


def significant(value: float) -> str:
    """Return three significant digits, and no exponent."""
    if value >= 100:
        return whole(value)
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{significant(seconds / size)} {unit}"
    return f"{significant(seconds * 1e6)} µs"


def ratio(entry: dict[str, Any] | None) -> str:
    """Return a median ratio with its quartiles."""
    if entry is None:
        return "–"
    return (
        f"{significant(entry['ratio'])} ({significant(entry['low'])}–{significant(entry['high'])})"
    )


def percent(share: float) -> str:
    """Return a share in whole per cent."""
    return f"{100 * share:.0f} %"
