"""A file on disk -> a DataFrame, without guessing: what is doubtful is an error that says where.

Spreadsheets write what a plain CSV reader takes in silently and wrongly: another encoding, decimal
commas, rows with a cell too many, two columns of one name, row numbers without a name.  Each is
found here, with the line in the file and the option that settles it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bayesgmm.errors import (
    ArgumentError,
    ColumnNameError,
    DataError,
    EmptyDataError,
    InfiniteValueError,
    NonNumericError,
    ShapeError,
)

_SHOWN = 30  # how many names a message lists
_SEPARATORS = ",;\t|"
_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 or NetCDF file",
    b"CDF": "a NetCDF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x80": "a Python pickle",
    b"RDX": "an R workspace",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}([,. '’]\d{3})+([.,]\d+)?")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")  # 1,234: a decimal comma or a thousands separator


def load_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    decimal: str = ".",
    separator: str | None = None,
    encoding: str | None = None,
) -> pd.DataFrame:
    """Read numeric columns of a CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        Parquet is recognised by its content; anything else is text with a header line.
    columns : sequence of str, optional
        The columns to read, in this order. Default: all.
    decimal : {".", ","}
        The decimal mark.
    separator : str, optional
        Between cells; one character. Default: whichever of comma, semicolon, tab and bar splits the
        header line most.
    encoding : str, optional
        Default: UTF-8, or what a byte order mark says.

    Returns
    -------
    DataFrame

    Raises
    ------
    DataError
        If the file cannot be read as such a table; the subclass says what is wrong and the message
        where, with what to do.
    ArgumentError
        If a column is not in the file, or an option makes no sense.
    """
    file = Path(path)
    if decimal not in (".", ","):
        raise ArgumentError("decimal", f"must be '.' or ',', not {decimal!r}")
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ArgumentError("separator", f"must be one character, not {separator!r}")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    if raw.startswith(b"PAR1"):
        return _parquet(file, columns)
    text = _Text(file, _decode(file, raw, encoding), separator)
    return text.frame(columns, decimal)


def _parquet(file: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise DataError(
            f"{file}: reading Parquet needs pyarrow: pip install 'bayesgmm[parquet]'"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is damaged or no Parquet file ({error})") from error
    names = [str(name) for name in frame.columns]
    return frame.iloc[:, [names.index(name) for name in _chosen(file, names, columns)]]


def _decode(file: Path, raw: bytes, encoding: str | None) -> str:
    if not raw.strip():
        raise EmptyDataError(f"{file}: the file is empty")
    bom = next((name for mark, name in _BOMS.items() if raw.startswith(mark)), None)
    if bom is None and encoding is None:
        for magic, what in _OTHER_FORMATS.items():
            if raw.startswith(magic):
                raise DataError(f"{file}: is {what}, not text; save it as CSV or Parquet")
        _refuse_zero_bytes(file, raw)
    try:
        return raw.decode(encoding or bom or "utf-8").removeprefix("\ufeff")
    except LookupError as error:
        raise ArgumentError("encoding", f"{encoding!r} is not known; e.g. utf-8, cp1252") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        advice = "pass its true encoding, e.g. --encoding cp1252"
        if encoding is None and bom is None:
            advice = "it looks like latin-1 (cp1252 on Windows): pass --encoding cp1252"
        raise DataError(
            f"{file}: is not {encoding or bom or 'utf-8'} (byte 0x{raw[error.start]:02x} in line "
            f"{line}); {advice}, or save it as UTF-8"
        ) from error


def _refuse_zero_bytes(file: Path, raw: bytes) -> None:
    at = raw.find(0)
    if at < 0:
        return
    even, odd = raw[0:4096:2].count(0), raw[1:4096:2].count(0)
    if max(even, odd) > 0.3 * min(len(raw), 4096) / 2:
        name = "utf-16-be" if even > odd else "utf-16-le"
        raise DataError(f"{file}: looks like {name} without a byte order mark; --encoding {name}")
    line = raw.count(b"\n", 0, at) + 1
    raise DataError(f"{file}: holds a NUL byte in line {line}; the file is damaged or not text")


@dataclass(frozen=True)
class _Text:
    """The text of a file, and how its cells are separated."""

    file: Path
    text: str
    separator: str | None

    def frame(self, columns: Sequence[str] | None, decimal: str) -> pd.DataFrame:
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        separator = self.separator or _sniff(self.file, first)
        lines = self._lines(separator)
        header = [name.strip() for name in next(lines)[1]]
        self._check_header(header, columns, decimal)
        n = self._count_rows(lines, header, separator)
        if n == 0:
            raise EmptyDataError(f"{self.file}: has a header line but no rows")
        wanted = _chosen(self.file, header, columns)
        table = pd.read_csv(
            io.StringIO(self.text, newline=None),
            sep=separator,
            decimal=decimal,
            header=0,
            names=header,
            usecols=wanted,
            index_col=False,
            skipinitialspace=True,
            low_memory=False,
        )[wanted]
        self._refuse_text(table, header, separator, decimal)
        self._refuse_overflow(table, header, separator)
        return table

    def _lines(self, separator: str) -> Iterator[tuple[int, list[str]]]:
        """Yield every line that is not blank: its number and its cells."""
        # newline=None: line ends of Windows and of old Macs count as line ends too.
        stream = io.StringIO(self.text, newline=None)
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells) or len(cells) > 1:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(
                f"{self.file}: line {reader.line_num} is not CSV ({error}); look for a quotation "
                "mark that is not closed"
            ) from error

    def _check_header(self, header: list[str], columns: Sequence[str] | None, decimal: str) -> None:
        if repeated := sorted({name for name in header if header.count(name) > 1 and name}):
            raise ColumnNameError(
                f"{self.file}: several columns are called {_listed(repeated)}; rename them"
            )
        if all(_NUMBER.fullmatch(name.replace(decimal, ".")) for name in header):
            raise ColumnNameError(
                f"{self.file}: the first line holds numbers ({_listed(header[:3])}), not column "
                "names; add a header line"
            )
        if "" in header and columns is None:
            raise ColumnNameError(
                f"{self.file}: column {header.index('') + 1} has no name (row numbers, or a "
                "separator at the end of each line?); name it, or choose columns with --columns"
            )

    def _count_rows(
        self, lines: Iterator[tuple[int, list[str]]], header: list[str], separator: str
    ) -> int:
        n, width = 0, len(header)
        for line, cells in lines:
            if len(cells) != width:
                raise ShapeError(
                    f"{self.file}: line {line} has {len(cells)} cells, the header has {width}"
                    + _why_ragged(cells, width, separator)
                )
            n += 1
        return n

    def _find(self, separator: str, row: int, column: int) -> tuple[int, str]:
        """Return line number and text of a cell."""
        for i, (line, cells) in enumerate(self._lines(separator)):
            if i == row + 1:
                return line, cells[column].strip()
        raise AssertionError("the rows were counted before")

    def _refuse_text(
        self, table: pd.DataFrame, header: list[str], separator: str, decimal: str
    ) -> None:
        parts, hint, good = [], "", []
        for name in table.columns:
            column = table[name]
            if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                good.append(name)
                continue
            row = next((i for i, v in enumerate(column) if _is_text(v, decimal)), None)
            if row is None:  # numbers all the same, of more than 64 bits: data.read has the words
                continue
            line, cell = self._find(separator, row, header.index(name))
            parts.append(f"column {name!r} holds text (first {cell!r} in line {line})")
            hint = hint or _hint(cell, decimal)
        if parts:
            more = f" and {len(parts) - 5} more columns" if len(parts) > 5 else ""
            select = f"; choose the numeric columns: --columns {','.join(good)}" if good else ""
            raise NonNumericError(f"{self.file}: {'; '.join(parts[:5])}{more}{hint or select}")

    def _refuse_overflow(self, table: pd.DataFrame, header: list[str], separator: str) -> None:
        for name in table.columns:
            if table[name].dtype.kind != "f":
                continue
            for row in np.flatnonzero(np.isinf(table[name].to_numpy())):
                line, cell = self._find(separator, int(row), header.index(name))
                if cell.lstrip("+-")[:1].isdigit():
                    raise InfiniteValueError(
                        f"{self.file}: line {line}, column {name!r}: {cell} is beyond the largest "
                        "number, 1.8e308; change the unit"
                    )


def _sniff(file: Path, header: str) -> str:
    """Return the separator that splits the header line into most cells."""
    width = {s: len(next(csv.reader([header], delimiter=s))) for s in _SEPARATORS}
    best = max(width, key=width.__getitem__)
    if width[best] == 1 and len(header.split()) > 1 and '"' not in header:
        raise DataError(
            f"{file}: the header line has no comma, semicolon, tab or bar, but spaces: if they "
            "separate columns, pass --separator ' '; if it is one column, --separator ,"
        )
    return best


def _why_ragged(cells: list[str], width: int, separator: str) -> str:
    if separator == "," and len(cells) == 2 * width and all(re.search(r"\d", c) for c in cells):
        return "; decimal commas? Then another separator is needed: export with semicolons"
    if len(cells) == width + 1:
        return "; row names without a name in the header, or a separator too many?"
    return ""


def _is_text(value: object, decimal: str) -> bool:
    """Whether a cell of a column that is not numeric is why."""
    if isinstance(value, str):
        return not _NUMBER.fullmatch(value.strip().replace(decimal, "."))
    return isinstance(value, bool | np.bool_)


def _hint(cell: str, decimal: str) -> str:
    if decimal == "." and _GROUPED.fullmatch(cell):
        return (
            "; if this is a decimal comma, pass --decimal ,; if it separates thousands, write the "
            "numbers without"
        )
    if decimal == "." and _DECIMAL_COMMA.fullmatch(cell):
        return "; this is a decimal comma: pass --decimal ,"
    if _THOUSANDS.fullmatch(cell):
        return "; write the numbers without thousands separators"
    if cell in ("?", "-", "--", ".", "*", "missing", "unknown"):
        return "; if it stands for a missing value, drop these rows or impute them"
    return ""


def _chosen(file: Path, names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return list(names)
    for name in columns:
        if name not in names:
            raise ArgumentError(
                "columns", f"{file} has no column {name!r}; it has {_listed(names)}"
            )
        if list(columns).count(name) > 1:
            raise ArgumentError("columns", f"{name!r} is chosen twice")
    return list(columns)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
