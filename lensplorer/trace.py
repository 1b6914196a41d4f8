"""A model runs once; what it did is a ``Trace``.

This is the only place that runs a model with its cache. ``run_model`` is the one run of a batch of token ids, under interventions, with
the activations asked for; ``run_trace`` makes of it the labelled record of one prompt that every analysis is a function of.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch

from lensplorer.errors import PromptError, TraceError, did_you_mean
from lensplorer.locks import model_lock
from lensplorer.models import LensModel, ModelInfo, model_info
from lensplorer.tokens import Prompt, encode_prompt, resolve_token, token_texts
from lensplorer.watching import tick

#: A hook of one run: the activation's name, and a function of (activation, hook point) that returns its replacement.
Hook = tuple[str, Callable[[torch.Tensor, Any], torch.Tensor]]

#: Not cached unless named: the scores are the pattern's logarithm up to a constant per row, and as large.
#: The others are switched off in the model unless somebody pays for them (``set_use_attn_result`` and its like).
_LEFT_OUT = ("*.hook_attn_scores", "*.hook_rot_*", "*.hook_result", "*.hook_[qkv]_input", "*.hook_attn_in", "*.hook_mlp_in")

EMBEDDING_HOOK = "hook_embed"


@runtime_checkable
class Intervention(Protocol):
    """A change to a run: a value that becomes hooks. ``lensplorer.interventions`` makes them."""

    def hooks(self, model: LensModel, positions: range) -> Sequence[Hook]:
        """The hooks for a run over the absolute ``positions`` (a step with a KV cache runs only the last)."""
        ...


@runtime_checkable
class ReadsActivations(Protocol):
    """Anything that declares the activations it needs: every analysis does."""

    reads: tuple[str, ...]


Reads = Iterable[str | ReadsActivations] | None


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model did on one prompt.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=["blocks.3.hook_resid_post"])
    >>> tuple(trace.logits.shape), tuple(trace["blocks.3.hook_resid_post"].shape)
    ((5, 1793), (5, 128))

    Attributes:
        model: the model that ran.
        tokens: ids fed, BOS included. [position], int64, CPU
        token_texts: exact text of each token.
        logits: the model's own logits. [position, d_vocab]
        cache: a TransformerLens ``ActivationCache`` without batch dimension, under TransformerLens' names, e.g.
            ``trace.cache["resid_post", 3]`` [position, d_model] or ``trace.cache["blocks.3.attn.hook_pattern"]`` [head, query, source].
        interventions: the changes under which the model ran.
        embeddings: the token embeddings as a leaf of the autograd graph when run with ``gradients=True``, else None. [1, position, d_model]
    """

    model: LensModel
    tokens: torch.Tensor
    token_texts: list[str]
    logits: torch.Tensor
    cache: Any
    interventions: tuple[Any, ...] = ()
    embeddings: torch.Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.token_texts)

    def __repr__(self) -> str:
        changed = f", {len(self.interventions)} interventions" if self.interventions else ""
        return f"Trace({self.info.name!r}, {len(self)} tokens, {len(self.cache)} activations{changed})"

    @property
    def info(self) -> ModelInfo:
        """The model's ``ModelInfo``."""
        return model_info(self.model)

    @property
    def n_layers(self) -> int:
        return int(self.model.cfg.n_layers)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The activation called ``name``, without batch dimension.

        Raises:
            TraceError: it was not read; the message says how to read it.
        """
        try:
            return self.cache.cache_dict[name]
        except KeyError:
            if name in hook_names(self.model):
                raise TraceError(
                    f"This trace did not read {name!r}: run_trace(model, prompt, reads=[{name!r}, ...]). Some hooks are off by default in the model."
                ) from None
            raise TraceError(f"This model has no activation {name!r}.{did_you_mean(name, hook_names(self.model))}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.cache.cache_dict

    def position(self, position: int) -> int:
        """``position`` counted from the front (-1 is the last).

        Raises:
            TraceError: it is outside the prompt.
        """
        n = len(self)
        if not -n <= position < n:
            raise TraceError(f"Position {position} is outside the prompt of {n} tokens: expected {-n} to {n - 1}.")
        return position % n

    def token_id(self, token: str | int) -> int:
        """The id of ``token``, which must be exactly one token (see ``resolve_token``)."""
        return resolve_token(self.model.tokenizer, token, d_vocab=int(self.model.cfg.d_vocab))


def run_trace(
    model: LensModel,
    prompt: Prompt,
    *,
    reads: Reads = None,
    interventions: Iterable[Intervention] = (),
    gradients: bool = False,
    prepend_bos: bool | None = None,
    truncate: bool = False,
) -> Trace:
    """Run the model once over a prompt and keep what it did.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> trace.token_texts[-1]
    ' time'

    Args:
        model: from ``load_model``, or any HookedTransformer or TransformerBridge.
        prompt: text; token ids (a list, array or tensor, [position] or [1, position]); or chat messages, which go through the model's template.
        reads: what to cache: analyses (their declared activations), hook names or wildcards ("blocks.*.hook_resid_post"). None: everything
            but attention scores before the softmax.
        interventions: changes applied during the run, in order.
        gradients: keep the graph from the token embeddings to the logits, which gradient attributions need.
        prepend_bos: put a BOS token in front. None: the model's default for text, and never for ids and chat. Never doubled.
        truncate: keep only the last tokens (and BOS) of a prompt longer than the context, instead of refusing it.

    Raises:
        PromptError: the prompt is empty, too long, or has an id outside the vocabulary.
        TraceError: ``reads`` or an intervention names an activation that the model does not have.

    Cost: one forward pass over the prompt, and memory for the activations read.
    """
    ids = prompt_ids(model, prompt, prepend_bos=prepend_bos, truncate=truncate)
    tokens = torch.tensor(ids)
    interventions = tuple(interventions)
    run = run_model(model, tokens[None], reads=resolve_reads(model, reads), interventions=interventions, gradients=gradients)
    return make_trace(model, tokens, run.logits[0], {name: value[0] for name, value in run.activations.items()}, interventions, run.embeddings)


def make_trace(
    model: LensModel,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    activations: dict[str, torch.Tensor],
    interventions: tuple[Any, ...] = (),
    embeddings: torch.Tensor | None = None,
) -> Trace:
    """A ``Trace`` of activations without batch dimension, however they were come by."""
    from transformer_lens import ActivationCache

    cache = ActivationCache(activations, model, has_batch_dim=False)
    return Trace(model, tokens, token_texts(model.tokenizer, tokens.tolist()), logits, cache, interventions, embeddings)


def prompt_ids(model: LensModel, prompt: Prompt, *, prepend_bos: bool | None = None, truncate: bool = False) -> list[int]:
    """The ids that ``run_trace`` feeds for ``prompt``.

    Raises:
        PromptError: as ``run_trace``.
    """
    info = model_info(model)
    d_vocab = int(model.cfg.d_vocab)
    ids = encode_prompt(model.tokenizer, prompt, prepend_bos=prepend_bos, default_bos=info.default_prepend_bos, d_vocab=d_vocab)
    if len(ids) <= info.n_ctx:
        return ids
    if not truncate:
        raise PromptError(
            f"The prompt is {len(ids)} tokens, and the context of {info.name!r} is {info.n_ctx}. Shorten it, or pass truncate=True to keep the end."
        )
    head = ids[:1] if ids[0] == model.tokenizer.bos_token_id else []
    return head + ids[len(ids) - info.n_ctx + len(head) :]


@lru_cache(maxsize=16)
def _hook_names(model: Any) -> frozenset[str]:
    return frozenset(model.hook_dict)


def hook_names(model: LensModel) -> frozenset[str]:
    """Every hook name of the model, under TransformerLens' names on both backends."""
    return _hook_names(model)  # type: ignore[arg-type]


def resolve_reads(model: LensModel, reads: Reads) -> frozenset[str]:
    """The hook names that ``reads`` stands for on this model.

    A wildcard, or an analysis' declaration, that matches nothing stands for nothing (a rotary model has no ``hook_pos_embed``).

    Raises:
        TraceError: a plain name is not a hook of the model.
    """
    names = hook_names(model)
    if reads is None:
        return frozenset(name for name in names if not any(fnmatch.fnmatchcase(name, left_out) for left_out in _LEFT_OUT))
    resolved: set[str] = set()
    for read in [reads] if isinstance(reads, (str, ReadsActivations)) else reads:
        if isinstance(read, str):
            found = {read} & names or {name for name in names if "*" in read and fnmatch.fnmatchcase(name, read)}
            if not found and "*" not in read:
                raise TraceError(f"This model has no activation {read!r}.{did_you_mean(read, names)}")
            resolved |= found
        elif isinstance(read, ReadsActivations):
            for pattern in read.reads:
                resolved |= {pattern} & names or set(fnmatch.filter(names, pattern))
        else:
            raise TraceError(f"reads takes analyses and hook names, not {read!r}.")
    return frozenset(resolved)


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: logits [batch, position, d_vocab], activations by name, and the embedding leaf if gradients were asked for."""

    logits: torch.Tensor
    activations: dict[str, torch.Tensor]
    embeddings: torch.Tensor | None = None


def run_model(
    model: LensModel,
    tokens: torch.Tensor,
    *,
    reads: Iterable[str] = (),
    interventions: Iterable[Intervention] = (),
    hooks: Sequence[Hook] = (),
    gradients: bool = False,
    past: Any = None,
    start: int = 0,
) -> Run:
    """One run of a batch of token ids: the only place where a model runs.

    Args:
        model: as ``run_trace``.
        tokens: ids. [batch, position]
        reads: hook names to cache, without wildcards.
        interventions: applied in order, before anything is cached.
        hooks: further hooks, applied after the interventions.
        gradients: keep the graph from the embeddings on.
        past: the backend's own KV cache, extended in place (see ``stepping``).
        start: absolute position of the first token, when ``past`` holds those before it.

    Raises:
        TraceError: a hook name that the model does not have.
    """
    tick()
    names = hook_names(model)
    positions = range(start, start + tokens.shape[1])
    wanted = list(reads)
    applied: list[Hook] = [hook for intervention in interventions for hook in intervention.hooks(model, positions)]
    applied += hooks
    leaf: list[torch.Tensor] = []
    if gradients:

        def keep_leaf(value: torch.Tensor, hook: Any) -> torch.Tensor:
            leaf.append(value.detach().requires_grad_())
            return leaf[0]

        applied.append((EMBEDDING_HOOK, keep_leaf))
    for name in [*wanted, *(name for name, _ in applied)]:
        if name not in names:
            raise TraceError(f"This model has no activation {name!r}.{did_you_mean(name, names)}")
    # A step's values are copied by its caller: they may do without autograd's bookkeeping, a tenth of its time. Interventions may keep theirs.
    mode = torch.inference_mode() if past is not None and not applied else torch.set_grad_enabled(gradients)
    with model_lock(model), mode:
        hooked = model.hooks(fwd_hooks=[(name, _named(function)) for name, function in applied]) if applied else nullcontext()
        with hooked, _recorded(model, wanted) as recorded:
            logits = model(tokens.to(model.cfg.device), return_type="logits", **_run_options(model, tokens, past))
    return Run(logits, {name: _batched(recorded[name], tokens) for name in wanted if name in recorded}, leaf[0] if leaf else None)


@contextmanager
def _recorded(model: LensModel, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record activations, interventions included.

    TransformerLens' own caching hooks take a quarter of HookedTransformer's one-token step to add, call and remove, half of the bridge's, and even a
    plain hook a tenth. A hook point is an identity, so one without hooks is made to record as it is called; one with hooks gets another after
    them, to record what they return.

    HookedTransformer's blocks norm their input three times over, for queries, keys and values; here once.
    """
    recorded: dict[str, torch.Tensor] = {}
    with_graph = torch.is_grad_enabled()

    def recorder(point: Any, names: tuple[str, ...]) -> Callable[[Any], Any]:
        def record(value: Any) -> Any:
            kept = value[0] if isinstance(value, tuple) else value
            if not isinstance(kept, torch.Tensor):
                return value
            kept = kept.detach() if with_graph else kept
            kept = kept if point.hook_conversion is None else point.hook_conversion.convert(kept)  # the bridge splits heads as it is hooked
            for name in names:
                recorded[name] = kept
            return value

        return record

    changed, handles = [], []
    try:
        for block in model.blocks if model_info(model).backend == "hooked" else ():  # type: ignore[attr-defined]
            norm = getattr(block, "ln1", None)
            if norm is not None and "forward" not in norm.__dict__:
                changed.append(norm)
                norm.__dict__["forward"] = _once(norm.forward)
        for point, aliases in _hook_points(model, names):
            record = recorder(point, aliases)
            if point._forward_hooks or point._forward_pre_hooks or "forward" in point.__dict__:
                handles.append(point.register_forward_hook(lambda _, inputs, value, record=record: record(value)))
            else:
                changed.append(point)
                point.__dict__["forward"] = record
        yield recorded
    finally:
        for point in changed:
            point.__dict__.pop("forward", None)
        for handle in handles:
            handle.remove()


def _hook_points(model: LensModel, names: Iterable[str]) -> list[tuple[Any, tuple[str, ...]]]:
    """The hook points called ``names``, each with all of its names."""
    if model_info(model).backend == "hooked":
        return [(model.hook_dict[name], (name,)) for name in names]
    return _bridge_points(model, frozenset(names))  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def _bridge_points(model: Any, names: frozenset[str]) -> list[tuple[Any, tuple[str, ...]]]:
    """Most hook points of the bridge have several names, and to resolve them all takes as long as a step."""
    points: dict[int, tuple[Any, list[str]]] = {}
    for name, point in model.hook_dict.items():
        if name in names:
            points.setdefault(id(point), (point, []))[1].append(name)
    return [(point, tuple(aliases)) for point, aliases in points.values()]


def _once(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function, called once where the same tensor is given to it again and again."""
    last: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def called(value: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if last[0] is not value or last[1] is None:
            last = value, function(value)
        return last[1]  # type: ignore[return-value]

    return called


def _batched(value: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """An activation with its batch dimension: HookedTransformer's norms of queries and keys see [batch · position · head, d_head]."""
    batch, n = tokens.shape
    if value.ndim == 2 and value.is_floating_point() and value.shape[0] % (batch * n) == 0:
        return value.view(batch, n, -1, value.shape[-1])
    return value


def _named(function: Callable[[torch.Tensor, Any], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """TransformerLens passes the hook point by keyword."""

    def hooked(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return function(value, hook)

    return hooked


def _run_options(model: LensModel, tokens: torch.Tensor, past: Any) -> dict[str, Any]:
    if model_info(model).backend == "hooked":
        # An explicit mask: TransformerLens would otherwise mask every token that equals the padding token.
        return {} if past is None else {"past_kv_cache": past, "attention_mask": torch.ones_like(tokens)}
    return ({} if past is None else {"past_key_values": past, "use_cache": True}) | {"output_attentions": True}
