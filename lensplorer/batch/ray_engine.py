"""The same parts, run by Ray Data actors: one model each, on one machine or on a cluster whose machines share the output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lensplorer.batch.inputs import Record
from lensplorer.batch.plan import Plan
from lensplorer.batch.store import PartRecord
from lensplorer.errors import ConfigError, LensplorerError, first_line


def run_parts(plan: Plan, out: Path, waiting: Sequence[tuple[int, Any]], *, workers: int, device: str) -> Iterator[PartRecord]:
    """Run parts in actors; each part's record as it is done.

    Raises:
        ConfigError: Ray is not installed.
        LensplorerError: an actor failed as a whole; the parts that were written stay.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigError('--engine ray needs Ray: pip install "lensplorer[ray]".') from error

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)  # a cluster where RAY_ADDRESS names one, else this machine
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"part": part, "records": [record.to_json() for record in records]} for part, records in waiting]
        resources: dict[str, float] = ray.cluster_resources()
        gpus = 1 if device.startswith("cuda") or (device == "auto" and resources.get("GPU", 0) > 0) else 0
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_kwargs={"plan": plan.to_dict(), "out": str(out.resolve()), "device": device},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_gpus=gpus or None,
        )
        for row in done.iter_rows():
            yield PartRecord(**json.loads(row["record"]))
    except ray.exceptions.RayError as error:
        raise LensplorerError(f"Ray gave up: {_cause(error)}. The parts that were written stay: run the same command again.") from error
    finally:
        if started:
            ray.shutdown()


def _cause(error: BaseException) -> str:
    """The first error in a chain that is not Ray's own."""
    step: BaseException | None = error
    while step is not None:
        inner = getattr(step, "cause", None)
        if isinstance(inner, LensplorerError):
            return str(inner)
        step = inner if isinstance(inner, BaseException) else step.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)


class Worker:
    """An actor: a model, and ``run_part`` for each part that it is given."""

    def __init__(self, plan: dict[str, Any], out: str, device: str) -> None:
        from lensplorer.batch.runner import Runner
        from lensplorer.batch.store import store_of

        self.runner = Runner(Plan.from_dict(plan), device=device)
        self.store = store_of(Path(out))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        from lensplorer.batch.engine import run_part

        written = []
        for part, lines in zip(batch["part"], batch["records"]):
            record = run_part(self.runner, self.store, int(part), [Record.from_json(line) for line in lines])
            written.append(json.dumps(asdict(record)))
        return {"record": written}
