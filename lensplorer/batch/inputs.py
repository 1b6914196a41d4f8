"""Prompts from files: text (one per line), JSONL, CSV, Parquet, or a folder of a Hugging Face data set.

Read twice, never held: once for how many there are and a digest of their content, once to run them.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lensplorer.errors import FormatError, PromptError, did_you_mean, first_line

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet", ".arrow")
#: Columns that hold the prompt when none is named.
PROMPT_COLUMNS = ("prompt", "text")
#: The longest line that is read: far more than any context.
MAX_LINE = 16 * 2**20


@dataclass(frozen=True)
class Record:
    """One row of the input.

    Attributes:
        index: its place in the input, from 0; blank lines of a text do not count.
        fields: its columns; a text's line is the column ``prompt``.
    """

    index: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, column: str | None) -> Any:
        """The prompt: a text, token ids or chat messages.

        Raises:
            PromptError: the record has no such column, or nothing in it.
        """
        names = PROMPT_COLUMNS if column is None else (column,)
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        raise PromptError(f"Row {self.index} has no prompt: expected a column {' or '.join(map(repr, names))}, it has {sorted(self.fields)}.")

    def to_json(self) -> str:
        """As one line, the same for the same content."""
        return json.dumps([self.index, self.fields], sort_keys=True, ensure_ascii=False, default=str)

    @staticmethod
    def from_json(line: str) -> Record:
        index, fields = json.loads(line)
        return Record(index, fields)


@dataclass(frozen=True)
class Input:
    """A file or folder of prompts, looked through once.

    Attributes:
        path, split: as given.
        count: how many records.
        digest: of their content.
        columns: all columns seen.
    """

    path: Path
    split: str | None
    count: int
    digest: str
    columns: tuple[str, ...]

    def records(self) -> Iterator[Record]:
        """The records, in order."""
        return read_records(self.path, split=self.split)


def open_input(path: str | Path, *, column: str | None = None, split: str | None = None) -> Input:
    """Look through an input once.

    Raises:
        FormatError: it cannot be read, is of an unknown kind, damaged, empty, or no row has the prompt's column.
    """
    path = Path(path)
    digest, count, columns, found = hashlib.sha256(), 0, dict[str, None](), False
    for record in read_records(path, split=split):
        digest.update(record.to_json().encode("utf-8", errors="surrogatepass") + b"\n")
        columns.update(dict.fromkeys(record.fields))
        found = found or any(name in record.fields for name in (PROMPT_COLUMNS if column is None else (column,)))
        count += 1
    if not count:
        raise FormatError(f"{str(path)!r} has no prompts: it is empty.")
    if not found:
        wanted = column or " or ".join(PROMPT_COLUMNS)
        raise FormatError(f"{str(path)!r} has no column {wanted!r}.{did_you_mean(column or 'prompt', columns)} Name it with --column.")
    return Input(path, split, count, digest.hexdigest(), tuple(columns))


def read_records(path: Path, *, split: str | None = None) -> Iterator[Record]:
    """Every record of an input.

    Raises:
        FormatError: as ``open_input``; the message names the line.
    """
    if not path.exists():
        raise FormatError(f"There is no input {str(path)!r}.")
    if split is not None and not path.is_dir():
        raise FormatError(f"{str(path)!r} is a file and has no splits: leave --split {split} out.")
    index = 0
    try:
        for file in _files(path, split):
            for fields in _READERS[file.suffix](file):
                yield Record(index, fields)
                index += 1
    except OSError as error:
        raise FormatError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _files(path: Path, split: str | None) -> list[Path]:
    if path.is_file():
        if path.suffix not in _READERS:
            raise FormatError(f"{path.name!r} is of an unknown kind.{did_you_mean(path.suffix or path.name, SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise FormatError(f"{str(path)!r} is neither a file nor a folder.")
    if (path / "dataset_dict.json").is_file():
        splits = list(map(str, _json(path / "dataset_dict.json").get("splits", [])))
        if split is None and len(splits) != 1:
            raise FormatError(f"{str(path)!r} has the splits {', '.join(map(repr, splits))}: name one with --split.")
        if split is not None and split not in splits:
            raise FormatError(f"{str(path)!r} has no split {split!r}.{did_you_mean(split, splits)}")
        path = path / Path(splits[0] if split is None else split).name
        split = None
    if (path / "state.json").is_file():  # what datasets' save_to_disk writes
        if split is not None:
            raise FormatError(f"{str(path)!r} is one split of a data set: leave --split {split} out.")
        names = [str(entry.get("filename")) for entry in _json(path / "state.json").get("_data_files", []) if isinstance(entry, dict)]
        if not names or not all(Path(name).name == name and (path / name).is_file() for name in names):
            raise FormatError(f"{str(path / 'state.json')!r} is damaged: its data files are missing.")
        return [path / name for name in names]
    for suffix in (".parquet", ".jsonl", ".csv", ".arrow"):  # what a data set's repository holds
        found = sorted(file for file in path.rglob(f"*{suffix}") if split is None or file.name.startswith(split) or file.parent.name == split)
        if found:
            return found
    wanted = f" of the split {split!r}" if split else ""
    raise FormatError(f"{str(path)!r} holds no data set: neither state.json nor Parquet, JSONL, CSV or Arrow files{wanted}.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{str(path)!r} is no valid JSON ({error}).") from error
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise FormatError(f"Line {number} of {str(path)!r} is longer than {MAX_LINE // 2**20} MiB.")
            yield number, line.rstrip("\r\n")


def _read_text(path: Path) -> Iterator[dict[str, Any]]:
    for _, line in _lines(path):
        if line.strip():
            yield {"prompt": line}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"Line {number} of {str(path)!r} is no valid JSON ({first_line(error)}).") from error
        if isinstance(content, str):
            content = {"prompt": content}
        if not isinstance(content, dict):
            raise FormatError(f"Line {number} of {str(path)!r} is {type(content).__name__}: expected an object or a text.")
        yield content


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_without_nul(file, path), strict=True)
        try:
            for fields in reader:
                if None in fields or None in fields.values():
                    raise FormatError(f"Line {reader.line_num} of {str(path)!r} has another number of columns than the first.")
                yield dict(fields)
        except csv.Error as error:
            raise FormatError(f"Line {reader.line_num} of {str(path)!r} is no valid CSV ({error}).") from error


def _without_nul(file: IO[str], path: Path) -> Iterator[str]:
    for line in file:
        if "\0" in line:
            raise FormatError(f"{str(path)!r} is no CSV: it holds NUL bytes.")
        yield line


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    pa = _pyarrow()
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise FormatError(f"{str(path)!r} is no Parquet file ({first_line(error)}).") from error


def _read_arrow(path: Path) -> Iterator[dict[str, Any]]:
    pa = _pyarrow()

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield from batch.to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise FormatError(f"{str(path)!r} is no Arrow stream ({first_line(error)}).") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise FormatError('Batches need pyarrow: pip install "lensplorer[tables]".') from error
    return pyarrow


_READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet, ".arrow": _read_arrow}
