"""The one run of a batch of token ids, under interventions, with the activations asked for: the only place where a model runs."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch

from lensplorer.errors import TraceError, did_you_mean
from lensplorer.linear import LINEAR, Freezing, LinearRun, Shown
from lensplorer.locks import model_lock
from lensplorer.models import LensModel, model_info
from lensplorer.replay import Finished, Part, only
from lensplorer.sizes import require_memory
from lensplorer.watching import tick
from lensplorer.weights import Weights, weights_of

#: A hook of one run: the activation's name, and a function of (activation, hook point) that returns its replacement.
Hook = tuple[str, Callable[[torch.Tensor, Any], torch.Tensor]]

#: Not cached unless named: the scores are the pattern's logarithm up to a constant per row, and as large.
#: The others are switched off in the model unless somebody pays for them (``set_use_attn_result`` and its like).
_LEFT_OUT = ("*.hook_attn_scores", "*.hook_rot_*", "*.hook_result", "*.hook_[qkv]_input", "*.hook_attn_in", "*.hook_mlp_in")

EMBEDDING_HOOK = "hook_embed"
_MOST_READS = 256  # sets of names whose points are remembered


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


_known_points: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def hook_points(model: LensModel) -> Mapping[str, Any]:
    """Every hook point of the model, under TransformerLens' names on both backends; some have several names."""
    found = _known_points.get(model)
    if found is None:
        found = _known_points[model] = dict(model.hook_dict)
    return found


def hook_names(model: LensModel) -> Set[str]:
    """Every hook name of the model."""
    return hook_points(model).keys()


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


@contextmanager
def usual_autograd() -> Iterator[None]:
    """Autograd as it is outside of ``torch.no_grad()`` and ``torch.inference_mode()``, wherever the caller is."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: logits [batch, position, d_vocab], activations by name, and what gradients were asked of: embedding leaf or linear run."""

    logits: torch.Tensor
    activations: dict[str, torch.Tensor]
    embeddings: torch.Tensor | None = None
    linear: LinearRun | None = None
    graph: Mapping[str, Shown] = field(default_factory=dict)

    def value(self, name: str) -> torch.Tensor:
        """An activation that was read, with its graph if there is one. [batch, ...]"""
        return self.graph[name].value if name in self.graph else self.activations[name]


def run_model(
    model: LensModel,
    tokens: torch.Tensor,
    *,
    reads: Iterable[str] = (),
    interventions: Iterable[Intervention] = (),
    hooks: Sequence[Hook] = (),
    gradients: bool | str = False,
    rule: str = "gate",
    past: Any = None,
    start: int = 0,
    part: Part | None = None,
    weights: Weights | None = None,
) -> Run:
    """One run of a batch of token ids: the only place where a model runs.

    Args:
        model: as ``run_trace``.
        tokens: ids. [batch, position]
        reads: hook names to cache, without wildcards.
        interventions: applied in order, before anything is cached.
        hooks: further hooks, applied after the interventions.
        gradients: keep the graph from the embeddings on; ``"linear"``: that of the local linear model (see ``linear``).
        rule: of the linear model, how a gated product is shared: ``"gate"`` or ``"half"``.
        past: the backend's own KV cache, extended in place (see ``stepping``).
        start: absolute position of the first token, when ``past`` holds those before it.
        part: these blocks alone, from what entered them (see ``replay``); then ``Run.logits`` is empty unless the part ends in them.
        weights: those that ``past`` or ``part`` was made with.

    Works alike inside ``torch.no_grad()`` and ``torch.inference_mode()``.

    Raises:
        ModelError: the model's weights were converted or moved since it was loaded.
        TraceError: a hook name that the model does not have, more memory than is free, blocks that cannot be made linear, other weights than
            ``weights``, or gradients of a model made inside ``torch.inference_mode()``. Nothing has run then.
    """
    tick()
    if gradients not in (False, True, LINEAR):
        raise TraceError(f"gradients is False, True or {LINEAR!r}, not {gradients!r}.")
    own = weights_of(model)
    if weights is not None and own is not weights:
        raise TraceError("The model's weights were changed after this trace was made: ask the tree or session for it again.")
    if gradients and own.without_gradients:
        raise TraceError("This model was made inside torch.inference_mode(), and there are no gradients through its weights: make it outside.")
    points = hook_points(model)
    positions = range(start, start + tokens.shape[1])
    wanted = list(reads)
    freezing = Freezing(model, points, rule) if gradients == LINEAR else None
    applied: list[Hook] = [hook for intervention in interventions for hook in intervention.hooks(model, positions)]
    if freezing is not None:
        freezing.check_interventions(name for name, _ in applied)
        applied = [*freezing.early, *((name, freezing.watched(name, function)) for name, function in applied)]
    applied += hooks
    if freezing is not None:
        applied += freezing.late
    leaf: list[torch.Tensor] = []
    if gradients:

        def keep_leaf(value: torch.Tensor, hook: Any) -> torch.Tensor:
            leaf.append(value.detach().requires_grad_())
            return leaf[0]

        applied.append((EMBEDDING_HOOK, keep_leaf))
    for name in [*wanted, *(name for name, _ in applied)]:
        if name not in points:
            raise TraceError(f"This model has no activation {name!r}.{did_you_mean(name, points)}")
    if part is None:  # a part is bounded by who asks for it
        require_memory(model, tokens.shape[0], tokens.shape[1], wanted, n_past=start, gradients=gradients)
    if part is not None and part.residual is not None and part.start < int(model.cfg.n_layers):
        entry = points[f"blocks.{part.start}.hook_resid_pre"]  # what entered had been changed here already
        applied = [(name, function) for name, function in applied if points[name] is not entry]
    # A step's values are copied by its caller: they may do without autograd's bookkeeping, a tenth of its time. Interventions may keep theirs.
    inference = past is not None and not applied
    logits = torch.empty(0)
    with model_lock(model), torch.inference_mode(inference), torch.set_grad_enabled(bool(gradients)):
        hooked = model.hooks(fwd_hooks=[(name, _named(function)) for name, function in applied]) if applied else nullcontext()
        leaves = nullcontext() if freezing is None else freezing.leaves()
        graph: dict[str, Shown] = {}
        with (
            only(model, part) if part is not None else nullcontext(),
            leaves,
            hooked,
            _recorded(model, wanted, graph if gradients else None) as recorded,
            suppress(Finished),
        ):
            logits = model(tokens.to(model.cfg.device), return_type="logits", **_options(model, tokens, past))
    activations = {name: _batched(recorded[name], tokens) for name in wanted if name in recorded}
    if freezing is not None:
        logits, linear = freezing.finish(logits, leaf[0], graph)
        return Run(logits, activations, linear=linear, graph=graph)
    return Run(logits, activations, leaf[0] if leaf else None, graph=graph)


@contextmanager
def _recorded(model: LensModel, names: Iterable[str], graph: dict[str, Shown] | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Record activations, interventions included; into ``graph`` also as they are, with what shows them.

    TransformerLens' own caching hooks take a quarter of HookedTransformer's one-token step to add, call and remove, half of the bridge's, and even a
    plain hook a tenth. A hook point is an identity, so one without hooks is made to record as it is called; one with hooks gets another after
    them, to record what they return.

    The blocks of a HookedTransformer norm their input three times over, for queries, keys and values; here once.
    """
    recorded: dict[str, torch.Tensor] = {}
    with_graph = torch.is_grad_enabled()

    def recorder(point: Any, names: tuple[str, ...]) -> Callable[[Any], Any]:
        convert = getattr(point.hook_conversion, "convert", None)  # the bridge's points see the tensors of Hugging Face's modules

        def record(value: Any) -> Any:
            shown = value[0] if isinstance(value, tuple) else value
            if isinstance(shown, torch.Tensor):
                if graph is not None:
                    graph.update(dict.fromkeys(names, Shown(shown, convert or _as_it_is)))
                shown = shown.detach() if with_graph else shown
                shown = shown if convert is None else convert(shown)
                for name in names:
                    recorded[name] = shown
            return value

        return record

    changed, handles = [], []
    try:
        for block in model.blocks if model_info(model).backend == "hooked" else ():  # type: ignore[attr-defined]
            norm = getattr(block, "ln1", None)
            if norm is not None and "forward" not in norm.__dict__:
                changed.append(norm)
                norm.__dict__["forward"] = _once(norm.forward)
        for point, aliases in _points(model, frozenset(names)):
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


def _as_it_is(value: torch.Tensor) -> torch.Tensor:
    return value


_named_points: WeakKeyDictionary[Any, dict[frozenset[str], list[tuple[Any, tuple[str, ...]]]]] = WeakKeyDictionary()


def _points(model: LensModel, names: frozenset[str]) -> list[tuple[Any, tuple[str, ...]]]:
    """The hook points called ``names``, each with all of those names: most points of the bridge have several."""
    known = _named_points.setdefault(model, {})
    if names not in known:
        if len(known) > _MOST_READS:
            known.clear()
        known[names] = _with_aliases(model, names)
    return known[names]


def _with_aliases(model: LensModel, names: frozenset[str]) -> list[tuple[Any, tuple[str, ...]]]:
    points: dict[int, tuple[Any, list[str]]] = {}
    for name, point in hook_points(model).items():
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


def _options(model: LensModel, tokens: torch.Tensor, past: Any) -> dict[str, Any]:
    if model_info(model).backend == "hooked":
        # An explicit mask: TransformerLens would otherwise mask every token that equals the padding token.
        return {} if past is None else {"past_kv_cache": past, "attention_mask": torch.ones_like(tokens)}
    return {"output_attentions": True} | ({} if past is None else {"past_key_values": past, "use_cache": True})
