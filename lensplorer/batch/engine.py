"""Running a plan over an input: part by part in this process, or in Ray actors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensplorer.arguments import expects
from lensplorer.batch.inputs import Record, open_input
from lensplorer.batch.plan import Plan, make_plan
from lensplorer.batch.runner import Runner
from lensplorer.batch.store import PartRecord, Store, errors_of, open_store, parts
from lensplorer.errors import ConfigError, did_you_mean

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        done, total, errors: prompts; those done before a resume count as done.
        seconds: since this process began to run parts.
        rate: prompts per second of this process; 0 before the first part.
        remaining: seconds, at this rate; None before the first part.
    """

    done: int
    total: int
    errors: int
    seconds: float
    rate: float
    remaining: float | None


@dataclass(frozen=True)
class Report:
    """What a batch came to.

    Attributes:
        out: its folder.
        prompts, errors: how many, and how many of them with an error of their own or of an analysis.
        rows: table → rows.
        resumed: prompts that were done before.
        seconds: that this process took, loading included.
    """

    out: Path
    prompts: int
    errors: int
    rows: Mapping[str, int]
    resumed: int
    seconds: float


@expects
def run_batch(
    source: str | Path,
    out: str | Path,
    *,
    analyses: Iterable[str | Mapping[str, Any]],
    settings: Sequence[tuple[str, str, Any]] = (),
    engine: str = "local",
    workers: int = 2,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    loaded: Any = None,
    **options: Any,
) -> Report:
    """Run analyses over many prompts and write their rows as Parquet. Killed, it goes on where it was when called again.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "prompts.txt").write_text("Once upon a time\\nThe capital of France is\\n", encoding="utf-8")
    ...     report = lp.run_batch(folder + "/prompts.txt", folder + "/out", analyses=["residual_norms"])
    ...     report.prompts, report.rows["residual_norms"]
    (2, 55)

    Args:
        source: a text with a prompt per line, JSONL, CSV, Parquet, or a folder of a Hugging Face data set.
        out: a folder of this batch's own; docs/batch.md describes what it holds.
        analyses: names, or tables {"name": …, "label": …, option: value}.
        settings: further options, (label, option, value), which come before those in ``analyses``.
        engine: ``"local"``, this process; ``"ray"``, Ray Data actors with one model each.
        workers: Ray actors.
        device: as ``load_model``.
        progress: called after each part.
        loaded: a model that is loaded already, of which ``model`` is the name.
        options: further fields of ``Plan``: model, dtype, column, id_column, completion_column, max_new_tokens, part_size, tokenlens, …

    Returns:
        a ``Report``. An error of one prompt is in the tables ``prompts`` and ``runs`` and stops nothing else.

    Raises:
        ConfigError: an unknown analysis or option.
        FormatError: the input cannot be read, ``out`` holds another batch or cannot be written, the disk is full.
        ModelError: the model cannot be loaded.

    Cost: the input is read three times, and never held; a forward pass per group of prompts of like length, shared by all analyses that
    need no gradients.
    """
    began = time.monotonic()
    if engine not in ENGINES:
        raise ConfigError(f"Unknown engine {engine!r}.{did_you_mean(engine, ENGINES)}")
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}.")
    plan = make_plan(analyses, options, settings)
    found = open_input(source, column=plan.column, split=plan.split)
    _check_columns(plan, found.columns)
    runner = Runner(plan, device=device, model=loaded)
    with open_store(Path(out), plan, found, runner.fingerprint()) as store:
        tally = _Tally(found.count, progress)
        waiting = []
        for part, records in parts(plan, found):
            done = store.record(part)
            if done is None:
                waiting.append((part, records) if engine == "ray" else (part, None))
            else:
                tally.add(done, resumed=True)
        if waiting:
            tally.start()
            if engine == "ray":
                from lensplorer.batch.ray_engine import run_parts

                del runner  # each actor loads its own
                for record in run_parts(plan, store.out, waiting, workers=workers, device=device):
                    tally.add(record)
            else:
                missing = {part for part, _ in waiting}
                for part, records in parts(plan, found):
                    if part in missing:
                        tally.add(run_part(runner, store, part, records))
    return Report(Path(out), tally.done, tally.errors, tally.rows, tally.resumed, time.monotonic() - began)


def run_part(runner: Runner, store: Store, part: int, records: Sequence[Record]) -> PartRecord:
    """Run one part and write it: what every engine does."""
    jobs = runner.run(records, timestamp=store.created)
    documents = {f"tokenlens/{label}/{job.record.index:07d}.json": document for job in jobs for label, document in job.documents.items()}
    return store.write(part, runner.tables(jobs), documents, prompts=len(jobs), errors=errors_of(jobs))


def _check_columns(plan: Plan, columns: Sequence[str]) -> None:
    """Columns that the plan names must be somewhere in the input."""
    named = [("id_column", plan.id_column), ("completion_column", plan.completion_column)]
    for request in plan.requests:
        named += [(f"{request.label}.{name}", value["column"]) for name, value in request.options.items() if _is_column(value)]
    for option, column in named:
        if column is not None and column not in columns:
            raise ConfigError(f"{option}: the input has no column {column!r}.{did_you_mean(column, columns)}")


def _is_column(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"column"}


class _Tally:
    """Counts parts and tells how it goes."""

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self.total, self.progress = total, progress
        self.done = self.errors = self.resumed = 0
        self.rows: dict[str, int] = {}
        self.began = time.monotonic()

    def start(self) -> None:
        self.began = time.monotonic()

    def add(self, record: PartRecord, *, resumed: bool = False) -> None:
        self.done += record.prompts
        self.errors += record.errors
        self.resumed += record.prompts if resumed else 0
        for name, rows in record.rows.items():
            self.rows[name] = self.rows.get(name, 0) + rows
        if self.progress is not None and not resumed:
            seconds = time.monotonic() - self.began
            rate = (self.done - self.resumed) / max(seconds, 1e-9)
            self.progress(Progress(self.done, self.total, self.errors, seconds, rate, (self.total - self.done) / rate))
