"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Give a file beside ``target`` to write to; it takes the place of ``target`` at the end.

    A reader, or a crash, meets the old file or the new one.  The mode is that of any new file.

    Parameters
    ----------
    target : Path
        In a folder that exists.

    Yields
    ------
    Path
        An empty file, which is removed if the block raises.
    """
    # Not by tempfile, whose files are for their owner alone.
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
