"""The folder of a batch: what was asked, which parts are done, and their files.

``manifest.json`` says what the rows are of. A part's files are written one by one, each whole or not at all, and then its record in ``parts/``:
a part without a record is made again and replaces whatever is there, so that a kill at any moment loses nothing and doubles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensplorer import __version__
from lensplorer.batch.inputs import Input
from lensplorer.batch.plan import Plan
from lensplorer.errors import FormatError
from lensplorer.formats.files import read_json, write_bytes, written_atomically

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "lensplorer batch 1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PartRecord:
    """What a finished part left: prompts, those of them with an error anywhere, and rows per table."""

    part: int
    prompts: int
    errors: int
    rows: Mapping[str, int]


class Store:
    """The folder ``out`` of one batch. Open it with ``open_store``."""

    def __init__(self, out: Path, manifest: Mapping[str, Any]) -> None:
        self.out, self.manifest = out, manifest

    @property
    def created(self) -> str:
        """When the batch was started: the timestamp of all its files, so that a part made again is the same."""
        return str(self.manifest["created"])

    def _record_path(self, part: int) -> Path:
        return self.out / "parts" / f"part-{part:05d}.json"

    def record(self, part: int) -> PartRecord | None:
        """The record of a part if it is done and its files are there, else None."""
        path = self._record_path(part)
        if not path.is_file():
            return None
        content = read_json(path, what="the record of a part")
        try:
            whole = all((self.out / name).stat().st_size == size for name, size in content["files"].items())
            return PartRecord(int(content["part"]), int(content["prompts"]), int(content["errors"]), dict(content["rows"])) if whole else None
        except OSError:
            return None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{str(path)!r} is damaged ({type(error).__name__} {error}): delete it, and the part is made again.") from error

    def write(
        self, part: int, tables: Mapping[str, pa.Table], documents: Mapping[str, Mapping[str, Any]], *, prompts: int, errors: int
    ) -> PartRecord:
        """Write a part: its tables, its TokenLens documents by path, then its record.

        Raises:
            FormatError: the disk is full or a folder cannot be written. The part is not done then.
        """
        import pyarrow.parquet

        sizes: dict[str, int] = {}
        for name, table in tables.items():
            path = self.out / name / f"part-{part:05d}.parquet"
            _make_folder(path.parent)
            with written_atomically(path) as temporary:
                pyarrow.parquet.write_table(table, temporary, compression="zstd")
            sizes[f"{name}/{path.name}"] = path.stat().st_size
        for name, document in documents.items():
            path = self.out / name
            _make_folder(path.parent)
            data = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8", errors="surrogatepass")
            write_bytes(path, data)
            sizes[name] = len(data)
        record = PartRecord(part, prompts, errors, {name: table.num_rows for name, table in tables.items()})
        content = {"part": part, "prompts": prompts, "errors": errors, "rows": record.rows, "files": sizes}
        write_bytes(self._record_path(part), json.dumps(content, indent=1, sort_keys=True).encode())
        return record


@contextmanager
def open_store(out: Path, plan: Plan, source: Input, fingerprint: str) -> Iterator[Store]:
    """The folder of this batch: made, or taken up where it was left. One process at a time.

    Raises:
        FormatError: the folder holds something else, or a batch of another input, plan, model or version, which the message names; another
            process is writing it; it cannot be written.
    """
    asked = {
        "format": FORMAT,
        "version": __version__,
        "input": {"digest": source.digest, "count": source.count},
        "model": fingerprint,
        "plan": plan.to_dict(),
    }
    asked["hash"] = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = out / MANIFEST
    _make_folder(out)
    with _locked(out):
        if path.is_file():
            manifest = read_json(path, what="the manifest of a batch")
            _check_same(out, manifest, asked)
        else:
            others = sorted(item.name for item in out.iterdir() if item.name != _LOCK and not _is_temporary(item))
            if others:
                raise FormatError(f"{str(out)!r} is not empty and holds no batch: {', '.join(others[:3])}. Give --out a folder of its own.")
            manifest = {**asked, "created": datetime.now(UTC).isoformat(timespec="seconds"), "input_path": str(source.path)}
            write_bytes(path, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8", errors="surrogatepass"))
        _make_folder(out / "parts")
        for leftover in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp"), *out.glob("*/*/.*.tmp")]:  # of a process that was killed
            leftover.unlink(missing_ok=True)
        yield Store(out, manifest)


def store_of(out: Path) -> Store:
    """The folder of a batch that another process opened, for one that only writes parts."""
    return Store(out, read_json(out / MANIFEST, what="the manifest of a batch"))


def parts(plan: Plan, source: Input) -> Iterator[tuple[int, list[Any]]]:
    """The records of each part."""
    part: list[Any] = []
    for record in source.records():
        part.append(record)
        if len(part) == plan.part_size:
            yield record.index // plan.part_size, part
            part = []
    if part:
        yield part[0].index // plan.part_size, part


def _check_same(out: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if manifest.get("hash") == asked["hash"]:
        return
    if manifest.get("format") != FORMAT:
        raise FormatError(f"{str(out / MANIFEST)!r} is not of this kind of batch: expected format {FORMAT!r}, got {manifest.get('format')!r}.")
    differ = [name for name in ("version", "input", "model") if manifest.get(name) != asked[name]]
    before = manifest.get("plan", {})
    before = before if isinstance(before, Mapping) else {}
    differ += [f"{name} ({before.get(name)!r} then, {value!r} now)" for name, value in asked["plan"].items() if before.get(name) != value]
    said = {"input": "the input's content", "model": "the model's weights", "version": f"lensplorer's version ({manifest.get('version')} then)"}
    raise FormatError(
        f"{str(out)!r} holds another batch. What differs: {'; '.join(said.get(name, name) for name in differ) or 'the manifest was changed'}."
        " Give --out another folder, or repeat what was asked for."
    )


_LOCK = ".lock"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder against another process, where the system has file locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    try:
        handle = os.open(out / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise FormatError(f"{str(out)!r} cannot be written: {error.strerror or error}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FormatError(f"Another process is writing {str(out)!r}: wait for it, or give --out another folder.") from error
        yield
    finally:
        os.close(handle)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.") from error


def errors_of(jobs: Sequence[Any]) -> int:
    """Prompts with an error, of their own or of an analysis."""
    return sum(1 for job in jobs if job.error or any(row["error"] for row in job.runs))
