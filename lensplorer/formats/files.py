"""Files that are either whole or not there, and reading that is bounded.

A file is written under another name in its own folder, flushed to the disk and renamed: neither a reader nor a kill in the middle ever sees
half of it under its name.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import decompressobj
from zlib import error as ZlibError

from lensplorer.errors import FormatError

#: The largest file of results that is read, unpacked. A matrix of 4,000 × 4,000 numbers as text is about 300 MB.
MAX_BYTES = 2**29

_GZIP = 31  # zlib's window bits for gzip: 15, plus 16


@contextmanager
def written_atomically(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, which takes its name when the block ends well and is removed when it does not.

    ``private``: only its owner may read the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_atomically(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole", encoding="utf-8")
    ...     (Path(folder) / "a.txt").read_text(encoding="utf-8")
    'whole'

    Raises:
        FormatError: the folder is missing or cannot be written, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        name = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        temporary = name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if path.is_dir():
            raise IsADirectoryError(21, "It is a folder")
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FormatError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be synced."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Write a whole file at once, or nothing.

    Raises:
        FormatError: as ``written_atomically``.
    """
    with written_atomically(path, private=private) as temporary:
        temporary.write_bytes(data)


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file, unpacked if it is gzip.

    Raises:
        FormatError: it cannot be read, is cut short, or is larger than ``max_bytes`` once unpacked.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise FormatError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if data[:2] == b"\x1f\x8b":
        unpacker = decompressobj(_GZIP)
        try:
            data = unpacker.decompress(data, max_bytes + 1)
        except ZlibError as error:
            raise FormatError(f"{str(path)!r} is damaged: it begins as gzip but cannot be unpacked ({error}).") from error
        if len(data) <= max_bytes and not unpacker.eof:
            raise FormatError(f"{str(path)!r} is cut short: its gzip data do not end.")
    if len(data) > max_bytes:
        raise FormatError(f"{str(path)!r} is larger than {max_bytes / 2**20:.0f} MiB, the most that is read. Pass max_bytes= to allow it.")
    return data


def read_json(path: str | Path, *, what: str, max_bytes: int = MAX_BYTES) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
        FormatError: as ``read_bytes``, or it is no JSON object; the message names ``what`` was expected.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{str(path)!r} is not {what}: it is no valid JSON ({said}).") from error
    if not isinstance(content, dict):
        raise FormatError(f"{str(path)!r} is not {what}: expected a JSON object, got {type(content).__name__}.")
    return content


def damaged(path: str | Path, what: str) -> Callable[[str], FormatError]:
    """Makes the error of a file that is not what it should be, from a sentence that says where."""

    def error(sentence: str) -> FormatError:
        return FormatError(f"{str(path)!r} is not {what}: {sentence}")

    return error
