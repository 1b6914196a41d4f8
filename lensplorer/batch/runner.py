"""A part of a batch: some prompts, all analyses, as tables. The same function in this process and in a Ray actor.

What it gives depends on the plan, the records and the model alone, so that a part that was lost is made again as it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.analyses.attribution import GRADIENT_METHODS
from lensplorer.analyses.base import REGISTRY
from lensplorer.batch.forward import forward_all, padding_is_safe, tokens_per_pass
from lensplorer.batch.inputs import Record
from lensplorer.batch.plan import Plan, Request, analyses
from lensplorer.errors import LensplorerError, PromptError, TraceError, first_line
from lensplorer.formats.attributions import attributions
from lensplorer.formats.tables import arrow_of
from lensplorer.formats.tokenlens import to_tokenlens
from lensplorer.models import load_model, model_info
from lensplorer.running import resolve_reads, run_model
from lensplorer.stepping import TokenTree
from lensplorer.tokens import token_texts
from lensplorer.trace import Trace, make_trace, prompt_ids, run_trace

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

logger = logging.getLogger(__name__)

#: What one prompt may do wrong without stopping the others. An out-of-memory error is a RuntimeError.
_FAILURES = (LensplorerError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError)
#: Attrs that are the same for every prompt.
_COMMON = ("analysis", "model", "backend", "dtype", "device", "source", "interventions")


@dataclass
class Job:
    """One prompt of a part.

    Attributes:
        record: of the input.
        ids: what is fed, generation included.
        start: index of the first generated token; None without generation.
        error: why it cannot be run; empty otherwise.
        tables: analysis label → rows.
        runs: one row per analysis: label, error, completeness, attributes.
        documents: TokenLens documents by analysis label.
    """

    record: Record
    ids: list[int] = field(default_factory=list)
    start: int | None = None
    error: str = ""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)


class Runner:
    """A model and all that a plan needs, ready to run parts.

    Args:
        plan: what to run.
        device: as ``load_model``.
        model: one that is loaded already; it must be what the plan names.

    Raises:
        ModelError, SAEError: the model or an SAE cannot be loaded.
        TraceError: an analysis reads what the model does not have.
    """

    def __init__(self, plan: Plan, *, device: str = "auto", model: Any = None) -> None:
        self.plan = plan
        self.model = model
        if model is None:
            self.model = load_model(
                plan.model, device=device, dtype=plan.dtype, backend=plan.backend, processing=plan.processing, revision=plan.revision
            )
        analyses()  # fills the registry
        self.options = {request.label: _resolved(request) for request in plan.requests}
        self.shared = [request for request in plan.requests if not needs_gradients(request)]
        self.reads = resolve_reads(self.model, [read for request in self.shared for read in self._reads(request)])
        self.pad = padding_is_safe(self.model)
        self.n_ctx = model_info(self.model).n_ctx

    def _reads(self, request: Request) -> list[Any]:
        saes = [value for name in ("sae", "saes") if (value := self.options[request.label].get(name)) is not None]
        if not saes:
            return [REGISTRY[request.name]]
        from lensplorer.saes import sae_reads

        return [REGISTRY[request.name], *(read for sae in saes for read in sae_reads(self.model, sae))]

    # -- a part --------------------------------------------------------------------------------------------------------------------

    def run(self, records: Sequence[Record], *, timestamp: str = "") -> list[Job]:
        """Every analysis of every prompt, in the order of ``records``. An error is kept with its prompt.

        Cost: one forward pass per group of prompts, and what the analyses take.
        """
        jobs = [self._job(record) for record in records]
        runnable = [job for job in jobs if not job.error]
        self._run_shared(runnable, timestamp)
        for job in runnable:
            for request in self.plan.requests:
                if needs_gradients(request):
                    self._analyse(job, request, None, timestamp)
        order = {request.label: at for at, request in enumerate(self.plan.requests)}
        for job in jobs:
            if job.error:
                job.runs = [_failed(request.label, job.error) for request in self.plan.requests]
            job.runs.sort(key=lambda row: order[row["analysis"]])
        return jobs

    def _job(self, record: Record) -> Job:
        job = Job(record)
        try:
            prompt = record.prompt(self.plan.column)
            if not isinstance(prompt, (str, list)):
                raise PromptError(f"Row {record.index}: a prompt is a text, token ids or chat messages, not {type(prompt).__name__}.")
            job.ids = prompt_ids(self.model, prompt, prepend_bos=self.plan.prepend_bos, truncate=self.plan.truncate)
            if self.plan.generates:
                job.start = len(job.ids)
                job.ids = [*job.ids, *self._generated(record, job.ids)]
                if len(job.ids) == job.start:
                    raise PromptError(f"Row {record.index}: nothing is generated after the prompt: the model ended the text, or the context is full.")
        except _FAILURES as error:
            job.error = _said(error)
        return job

    def _generated(self, record: Record, ids: list[int]) -> list[int]:
        """The tokens after the prompt: the completion's, else the model's likeliest, one by one."""
        if self.plan.completion_column is not None:
            completion = record.fields.get(self.plan.completion_column)
            if not isinstance(completion, str) or not completion:
                raise PromptError(f"Row {record.index} has no text in its column {self.plan.completion_column!r}: it has {sorted(record.fields)}.")
            found = prompt_ids(self.model, completion, prepend_bos=False)
            if len(ids) + len(found) > self.n_ctx:
                raise PromptError(f"Row {record.index}: prompt and completion are {len(ids) + len(found)} tokens, and the context is {self.n_ctx}.")
            return found
        tree, found = TokenTree(self.model, reads=()), list[int]()
        node = tree.extend(tree.root, ids)
        end = self.model.tokenizer.eos_token_id
        for _ in range(min(self.plan.max_new_tokens, self.n_ctx - len(ids))):
            token_id = int(tree.logits(node).argmax())
            if token_id == end:
                break
            found.append(token_id)
            if len(found) < self.plan.max_new_tokens and len(ids) + len(found) < self.n_ctx:
                node = tree.extend(node, token_id)
        return found

    def _run_shared(self, jobs: Sequence[Job], timestamp: str) -> None:
        """The analyses that share one forward pass."""
        if not (jobs and self.shared):
            return
        longest = max(len(job.ids) for job in jobs)
        tokens = self.plan.batch_tokens or tokens_per_pass(self.model, self.reads, longest)
        done: set[int] = set()
        try:
            for at, trace in forward_all(self.model, [job.ids for job in jobs], self.reads, pad=self.pad, tokens=tokens):
                for request in self.shared:
                    self._analyse(jobs[at], request, trace, timestamp)
                done.add(at)
        except (RuntimeError, TraceError) as error:  # the pass itself, usually memory: one prompt at a time then, so that none takes others with it
            logger.warning("A pass over several prompts failed (%s): the rest of the part runs one by one.", first_line(error))
            for at, job in enumerate(jobs):
                if at not in done:
                    self._run_alone(job, timestamp)

    def _run_alone(self, job: Job, timestamp: str) -> None:
        try:
            trace = self._trace_alone(job.ids)
        except (RuntimeError, PromptError) as error:
            job.error = _said(error)
            return
        job.tables, job.runs, job.documents = {}, [], {}
        for request in self.shared:
            self._analyse(job, request, trace, timestamp)

    def _trace_alone(self, ids: list[int]) -> Trace:
        """The trace of one prompt; where one run would not fit the memory, in pieces."""
        try:
            run = run_model(self.model, torch.tensor([ids]), reads=self.reads)
        except TraceError:
            tree = TokenTree(self.model, reads=self.reads)
            return tree.trace(tree.extend(tree.root, ids))
        return make_trace(self.model, torch.tensor(ids), run.logits[0], {name: value[0] for name, value in run.activations.items()})

    def _analyse(self, job: Job, request: Request, trace: Trace | None, timestamp: str) -> None:
        function: Any = analyses()[request.name]
        try:
            if trace is None:
                trace = run_trace(self.model, job.ids, reads=[function], gradients=True)
            options = self._options(job, request, trace)
            result = function(trace, **options)
            table = arrow_of(result)
            if self.plan.tokenlens and request.name == "attribution_matrix":
                job.documents[request.label] = self._document(job, trace, result, timestamp)
        except _FAILURES as error:
            job.runs.append(_failed(request.label, _said(error)))
            return
        job.tables[request.label] = table
        attrs = {key: _plain(value) for key, value in result.attrs.items() if key not in _COMMON}
        completeness = attrs.get("completeness")
        kept = float(completeness) if isinstance(completeness, (int, float)) else None
        job.runs.append({"analysis": request.label, "error": None, "completeness": kept, "attributes": json.dumps(attrs, sort_keys=True)})

    def _options(self, job: Job, request: Request, trace: Trace) -> dict[str, Any]:
        """The options of one prompt: columns looked up, the predicted token found."""
        options = dict(self.options[request.label])
        for name, value in options.items():
            if isinstance(value, Mapping) and set(value) == {"column"}:
                if job.record.fields.get(value["column"]) is None:
                    raise PromptError(
                        f"Row {job.record.index} has nothing in the column {value['column']!r} for {name}: {sorted(job.record.fields)}."
                    )
                options[name] = job.record.fields[value["column"]]
            elif isinstance(value, Mapping) and set(value) == {"predicted"}:
                at = trace.position(int(options.get("position", -1)))
                options[name] = int(trace.logits_at(at, at + 1).argmax())
        if request.name == "attribution_matrix" and job.start is not None:
            options.setdefault("start", job.start)
        return options

    def _document(self, job: Job, trace: Trace, matrix: xr.Dataset, timestamp: str) -> dict[str, Any]:
        generation: dict[str, Any] = {}
        if self.plan.max_new_tokens and self.plan.completion_column is None:
            generation = {"max_new_tokens": self.plan.max_new_tokens, "temperature": 0.0}
        prompt = job.record.prompt(self.plan.column)
        text = prompt if isinstance(prompt, str) else None
        return to_tokenlens(attributions(trace, matrix, prompt=text, generation=generation, timestamp=timestamp))

    # -- tables --------------------------------------------------------------------------------------------------------------------

    def tables(self, jobs: Sequence[Job]) -> dict[str, pa.Table]:
        """The rows of a part: ``prompts``, ``runs``, and one table per analysis that gave any."""
        import pyarrow as pa

        names = [self._name(job.record) for job in jobs]
        texts = [token_texts(self.model.tokenizer, job.ids) for job in jobs]
        found = {
            "prompts": pa.table(
                {
                    "prompt": pa.array([job.record.index for job in jobs], pa.int64()),
                    "id": pa.array(names, pa.string()),
                    "n_tokens": pa.array([len(job.ids) for job in jobs], pa.int32()),
                    "start": pa.array([job.start for job in jobs], pa.int32()),
                    "token_ids": pa.array([job.ids for job in jobs], pa.list_(pa.int32())),
                    "tokens": pa.array(texts, pa.list_(pa.string())),
                    "error": pa.array([job.error or None for job in jobs], pa.string()),
                }
            ),
            "runs": pa.table(
                {
                    "prompt": pa.array([job.record.index for job in jobs for _ in job.runs], pa.int64()),
                    "id": pa.array([name for job, name in zip(jobs, names) for _ in job.runs], pa.string()),
                    **{
                        key: pa.array([row[key] for job in jobs for row in job.runs], kind)
                        for key, kind in (
                            ("analysis", pa.string()),
                            ("error", pa.string()),
                            ("completeness", pa.float64()),
                            ("attributes", pa.string()),
                        )
                    },
                }
            ),
        }
        for request in self.plan.requests:
            tables = [(job.record.index, name, job.tables[request.label]) for job, name in zip(jobs, names) if request.label in job.tables]
            if tables:
                found[request.label] = _labelled(tables, request.label)
        return found

    def _name(self, record: Record) -> str | None:
        value = record.fields.get(self.plan.id_column) if self.plan.id_column is not None else None
        return None if value is None else str(value)

    def fingerprint(self) -> str:
        """A digest of the model: its weights at 1,024 places each, and its tokenizer. A retrained model under the same name has another."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().reshape(-1)
            digest.update(f"{name} {tuple(parameter.shape)} ".encode())
            digest.update(flat[:: max(1, len(flat) // 1024)].float().cpu().numpy().tobytes())
        digest.update(json.dumps(sorted(self.model.tokenizer.get_vocab().items()), ensure_ascii=True).encode())
        return digest.hexdigest()


def needs_gradients(request: Request) -> bool:
    """Whether an analysis takes the graph of a run of its own."""
    return request.name in ("attribute", "attribution_matrix") and request.options.get("method") in GRADIENT_METHODS


def _resolved(request: Request) -> dict[str, Any]:
    """Options with SAEs loaded and decoding parameters made."""
    options = dict(request.options)
    if isinstance(options.get("sae"), Mapping):
        from lensplorer.saes import load_sae

        options["sae"] = load_sae(**options["sae"])
    if isinstance(options.get("saes"), list):
        from lensplorer.saes import load_sae

        options["saes"] = [load_sae(**sae) for sae in options["saes"]]
    if isinstance(options.get("params"), Mapping):
        from lensplorer.sampling.params import DecodingParams

        options["params"] = DecodingParams.from_dict(options["params"])
    return options


def _labelled(tables: Sequence[tuple[int, str | None, pa.Table]], label: str) -> pa.Table:
    """The tables of several prompts as one, with the columns that say whose each row is."""
    import pyarrow as pa

    rows = pa.concat_tables([table.replace_schema_metadata(None) for _, _, table in tables], promote_options="permissive")
    counts = [table.num_rows for _, _, table in tables]
    metadata = {key: value for key, value in (tables[0][2].schema.metadata or {}).items() if key.decode().removeprefix("lensplorer.") in _COMMON}
    first = {
        "prompt": pa.array([index for (index, _, _), count in zip(tables, counts) for _ in range(count)], pa.int64()),
        "id": pa.array([name for (_, name, _), count in zip(tables, counts) for _ in range(count)], pa.string()),
        "analysis": pa.array([label] * rows.num_rows, pa.string()),
    }
    columns = {**first, **{name: rows[name] for name in rows.column_names if name not in first}}
    return pa.table(columns).replace_schema_metadata(metadata)


def _failed(label: str, error: str) -> dict[str, Any]:
    return {"analysis": label, "error": error, "completeness": None, "attributes": None}


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, LensplorerError) else f"{type(error).__name__}: {first_line(error)}"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
