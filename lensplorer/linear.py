"""The local linear model: a run whose gradients are those of a linear map, and whose values are the model's own, to the bit.

With attention patterns, the norms' scales and the gates held at their values in this run, what is left is linear from the token embeddings, the
position embeddings and the biases to the logits, so one backward pass takes a logit apart exactly. What is held:

- attention: no gradient enters queries and keys, so that the pattern is a constant, whatever rotates, norms or caps them;
- norms: none goes through the scale; centring is linear and stays;
- ``act(pre)`` becomes ``pre · (act(pre) / pre)``, the quotient a constant;
- a gated product ``act(pre) · lin``: rule ``"gate"`` holds ``act(pre)``; rule ``"half"`` lets half of the gradient through each factor;
- the logits' soft cap: as ``act``.

Sources: Achtibat et al. 2024 (AttnLRP: ``"half"``, and norms and quotients held); Jafari et al. 2025 (RelP); Ameisen et al. 2025 (attention and norms
frozen); Golden 2025 (the detached Jacobian, ``"gate"``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from lensplorer.errors import TraceError
from lensplorer.models import LensModel, model_info
from lensplorer.norms import read_norm

LINEAR = "linear"  #: what ``gradients`` is called that asks for this
RULES = ("gate", "half")

_POSITIONS = "hook_pos_embed"
_CONSTANT = re.compile(r"bias|b|_?b_\w+")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_NORM = re.compile(r"(?P<module>(?:blocks\.\d+\.(?:mlp\.)?|)(?!embed)\w+)\.hook_(?:scale|normalized)$")  # those of queries and keys are in attn

_Function = Callable[[torch.Tensor, Any], torch.Tensor]


class _As(torch.autograd.Function):
    """The bits of one tensor with the gradient of another that has the same value to rounding."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        ctx.dtype = linear.dtype
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient.to(ctx.dtype)


def _as(value: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, _As.apply(value.detach(), linear)) if linear.requires_grad else value.detach()  # type: ignore[no-untyped-call]


def _slope(factor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """∂value/∂factor, of an elementwise product or activation that was just computed."""
    return torch.autograd.grad(value, factor, torch.ones_like(value), retain_graph=True)[0]


def _quotient(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """value / x as a constant, and its limit, the derivative, where x is 0."""
    zero = x.detach() == 0
    quotient = value.detach() / x.detach()
    return torch.where(zero, _slope(x, value) if value.requires_grad else 0.0, quotient) if bool(zero.any()) else quotient


@dataclass(frozen=True, eq=False)
class Shown:
    """An activation that was read, with its graph.

    Attributes:
        tensor: as the model computes with it.
        show: that → the activation as it is shown, under TransformerLens' shape; and likewise for its gradient.
    """

    tensor: torch.Tensor
    show: Callable[[torch.Tensor], torch.Tensor]

    @property
    def value(self) -> torch.Tensor:
        """[batch, ...]"""
        return self.show(self.tensor)


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one number of a linear run consists of: values times gradients, each a term, all together the number.

    Rows count the residual stream: row l is what enters block l, the last what leaves the last block. A constant of row l is added after it.

    Attributes:
        tokens: embedding · gradient of each token. [position], float64
        positions: position embedding · gradient. [position], float64; zeros where the model adds none.
        biases: of each block, and behind the last. [n_layers + 1], float64
        interventions: what edits added, likewise; but that of the embeddings' row first. [n_layers + 2], float64
        at: activation → gradient, without batch dimension; None where nothing of the number goes through it.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    biases: torch.Tensor
    interventions: torch.Tensor
    at: Mapping[str, torch.Tensor | None]

    @property
    def rest(self) -> dict[str, float]:
        """The terms that are no token's."""
        return {
            "positions": float(self.positions.sum()),
            "biases": float(self.biases.sum()),
            "interventions": float(self.interventions.sum()),
        }

    def after(self, row: int) -> float:
        """All constants added after a row of the residual stream."""
        return float(self.biases[row:].sum() + self.interventions[row + 1 :].sum())


@dataclass(eq=False)
class LinearRun:
    """What a run keeps of the linear model: the rule, the leaves, and the activations read, with their graph.

    Attributes:
        rule: how a gated product is shared.
        graph: the activations that the run was asked to read, with their graph.
    """

    model: LensModel
    rule: str
    graph: Mapping[str, Shown] = field(default_factory=dict)
    _embeddings: torch.Tensor | None = None
    _positions: torch.Tensor | None = None
    _biases: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    _edits: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def n_layers(self) -> int:
        return int(self.model.cfg.n_layers)

    @property
    def embeddings(self) -> torch.Tensor:
        """The token embeddings as the leaf of the graph. [1, position, d_model]"""
        assert self._embeddings is not None
        return self._embeddings

    def value(self, name: str) -> torch.Tensor:
        """An activation that the run read, with its graph, without batch dimension.

        Raises:
            TraceError: the run did not read it.
        """
        if name not in self.graph:
            raise TraceError(f"This linear run did not read {name!r}: run_trace(model, prompt, reads=[{name!r}, ...], gradients='linear').")
        return self.graph[name].value[0]

    def gradients(self, value: torch.Tensor, names: Sequence[str] = ()) -> Gradients:
        """The terms of a number of this run.

        Args:
            value: a number with its graph: a logit, a difference, an activation along a direction.
            names: activations whose gradients are wanted too, among those that the run read.

        Cost: one backward pass; the graph is kept.
        """
        missing = [name for name in names if name not in self.graph]
        if missing:
            self.value(missing[0])  # says how to read it
        leaves = [self.embeddings, *([] if self._positions is None else [self._positions]), *(leaf for _, leaf in self._biases)]
        ends = [tensor for _, before, after in self._edits for tensor in (before, after)]
        wanted = [*leaves, *ends, *(self.graph[name].tensor for name in names)]
        asked = [tensor for tensor in wanted if tensor.requires_grad]
        found = iter(torch.autograd.grad(value, asked, retain_graph=True, allow_unused=True) if value.requires_grad else [None] * len(asked))
        gradients = [next(found) if tensor.requires_grad else None for tensor in wanted]
        n = self.embeddings.shape[1]
        rest = iter(zip(wanted, gradients))

        def product() -> torch.Tensor:
            tensor, gradient = next(rest)
            return tensor.detach().double() * gradient.double() if gradient is not None else torch.zeros_like(tensor, dtype=torch.float64)

        tokens = product().sum(-1)[0]
        positions = torch.zeros(n, dtype=torch.float64) if self._positions is None else product().sum(-1).reshape(-1, n).sum(0)
        biases, interventions = torch.zeros(self.n_layers + 1, dtype=torch.float64), torch.zeros(self.n_layers + 2, dtype=torch.float64)
        for row, _ in self._biases:
            biases[row] += product().sum().cpu()
        for row, _, _ in self._edits:
            before, after = product().sum(), product().sum()
            interventions[row + 1] += (after - before).cpu()
        at = {name: None if gradient is None else self.graph[name].show(gradient)[0] for name, (_, gradient) in zip(names, rest)}
        return Gradients(tokens.cpu(), positions.cpu(), biases, interventions, at)


class Freezing:
    """The hooks of one linear run, and what they gather."""

    def __init__(self, model: LensModel, points: Mapping[str, Any], rule: str) -> None:
        """
        Raises:
            TraceError: an unknown rule, or a block that cannot be frozen by its hooks.
        """
        if rule not in RULES:
            raise TraceError(f"Unknown rule {rule!r}: expected one of {', '.join(map(repr, RULES))}.")
        self.model, self.points = model, points
        self.run = LinearRun(model, rule)
        self.bridge = model_info(model).backend == "bridge"
        self.early: list[tuple[str, _Function]] = []  # before the interventions: they change what is linear already
        self.late: list[tuple[str, _Function]] = []  # after them
        self._seen: dict[str, torch.Tensor] = {}
        self._reached: set[str] = set()
        for layer in range(self.run.n_layers):
            self._freeze_attention(f"blocks.{layer}.attn.")
            self._freeze_mlp(layer)
        for module in dict.fromkeys(match["module"] for name in points if (match := _NORM.match(name))):
            self._freeze_norm(module)
        self._must = {name for name, _ in (*self.early, *self.late)}
        cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
        if cap > 0:
            self.late.append(("unembed.hook_out", self._keep("cap")))
        if _POSITIONS in points:  # some models have the hook and never reach it
            self.late.append((_POSITIONS, self._keep_positions))

    # -- what is frozen ---------------------------------------------------------------------------------------------------------------

    def _freeze_attention(self, prefix: str) -> None:
        for name in (f"{prefix}hook_q", f"{prefix}hook_k"):
            if name not in self.points:
                raise self._refusal(f"it has no {name!r}, where the gradient would be stopped")
            self.late.append((name, self._stop(name)))
        pattern = f"{prefix}hook_pattern"
        if pattern in self.points:
            self.late.append((pattern, self._is_constant(pattern)))

    def _freeze_mlp(self, layer: int) -> None:
        prefix = f"blocks.{layer}.mlp."
        pre, product, post = (f"{prefix}hook_{part}" for part in ("pre", "pre_linear", "post"))
        if pre not in self.points or post not in self.points:
            if hasattr(self.model.blocks[layer], "mlp"):  # type: ignore[attr-defined]
                kind = type(self.model.blocks[layer].mlp).__name__  # type: ignore[attr-defined]
                raise self._refusal(f"its MLP of block {layer} ({kind}) has no hooks before and after its nonlinearity (a mixture of experts?)")
            return
        self.late.append((pre, self._keep(pre)))
        middle = f"{prefix}hook_mid"  # SoLU: a norm follows
        if product in self.points:
            self.late.append((product, self._keep(product)))
            self.early.append((post, self._gated(pre, product, post, self._offset(layer))))
        else:
            end = middle if middle in self.points else post
            self.early.append((end, self._activation(pre, end)))

    def _offset(self, layer: int) -> Any:
        """The module that adds ``b_in`` after a gated product, if this is TransformerLens' own."""
        return None if self.bridge else self.model.blocks[layer].mlp  # type: ignore[attr-defined]

    def _freeze_norm(self, name: str) -> None:
        if not self.bridge:
            self.late.append((f"{name}.hook_scale", self._stop(f"{name}.hook_scale")))
            return
        # The bridge's norm is Hugging Face's, whose scale no hook holds: it is put in as it is, with the gradient of the linear norm.
        module: Any = self.model
        for part in name.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        norm = read_norm(module, self.model.cfg)
        if norm is None:
            return
        before, after = f"{name}.hook_in", f"{name}.hook_out"
        self.late.append((before, self._keep(before)))

        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(after)
            # its bias may have been replaced by a leaf since
            linear = read_norm(module, self.model.cfg)(self._seen.pop(before).to(torch.promote_types(value.dtype, torch.float32)), frozen=True)  # type: ignore[misc]
            return _as(value, linear)

        self.early.append((after, put))

    # -- the hooks --------------------------------------------------------------------------------------------------------------------

    def _stop(self, name: str) -> _Function:
        def stop(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(name)
            return value.detach()

        return stop

    def _keep(self, name: str) -> _Function:
        def keep(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(name)
            self._seen[name] = value
            return value

        return keep

    def _is_constant(self, name: str) -> _Function:
        def check(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(name)
            if value.requires_grad:
                raise self._refusal(f"{name!r} depends on more than its queries and keys")
            return value

        return check

    def _activation(self, pre: str, post: str) -> _Function:
        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(post)
            x = self._seen.pop(pre)
            return _as(value, x * _quotient(x, value))

        return put

    def _gated(self, pre: str, product: str, post: str, offset: Any) -> _Function:
        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:
            self._reached.add(post)
            x, factor = self._seen.pop(pre), self._seen.pop(product)
            if not factor.requires_grad:  # an intervention made it a constant
                return value.detach()
            gate = _slope(factor, value)
            linear = gate * factor
            if self.run.rule == "half" and x.requires_grad:
                of_x = _quotient(x, value if offset is None else value - offset.b_in)
                linear = 0.5 * (linear + x * of_x)
            return _as(value, linear if offset is None else linear + offset.b_in)

        return put

    def _keep_positions(self, value: torch.Tensor, hook: Any) -> torch.Tensor:
        self.run._positions = value.detach().requires_grad_()
        return self.run._positions

    # -- the run ----------------------------------------------------------------------------------------------------------------------

    def watched(self, name: str, function: _Function) -> _Function:
        """An intervention's hook, whose own constants are kept as a term."""
        row = self._row(name)

        def watch(value: torch.Tensor, hook: Any) -> torch.Tensor:
            before = value.view_as(value)  # what reads the value elsewhere is not the edit's
            after = function(before, hook)
            if after is before or after is None:
                return value
            self.run._edits.append((row, before, after))
            return after

        return watch

    def _row(self, name: str) -> int:
        """The row after which a hook adds what it adds."""
        block = _BLOCK.match(name)
        if block is None:
            return -1 if "embed" in name and "unembed" not in name else self.run.n_layers
        layer = int(block.group(1))
        return layer - 1 if self.points[name] is self.points.get(f"blocks.{layer}.hook_resid_pre") else layer

    def check_interventions(self, names: Iterable[str]) -> None:
        """
        Raises:
            TraceError: an intervention acts inside a norm that no hook freezes.
        """
        inside = [name for name in names if self.bridge and _NORM.match(name)]
        if inside:
            raise self._refusal(f"an intervention at {inside[0]!r} changes a norm that is frozen as a whole")

    @contextmanager
    def leaves(self) -> Iterator[None]:
        """Every bias a leaf of the graph, as long as the run lasts. Weights are frozen, and their modules the model's own."""
        made: dict[int, torch.nn.Parameter] = {}
        replaced: list[tuple[Any, str, Any]] = []
        blocks = {id(module): layer for layer, block in enumerate(self.model.blocks) for module in block.modules()}  # type: ignore[attr-defined]
        try:
            for module in cast(Any, self.model).modules():
                for name, parameter in module._parameters.items():
                    if parameter is None or not _CONSTANT.fullmatch(name):
                        continue
                    if id(parameter) not in made:
                        made[id(parameter)] = torch.nn.Parameter(parameter.detach())
                        self.run._biases.append((blocks.get(id(module), self.run.n_layers), made[id(parameter)]))
                    replaced.append((module, name, parameter))
            for module, name, parameter in replaced:
                module._parameters[name] = made[id(parameter)]
            yield
        finally:
            for module, name, parameter in replaced:
                module._parameters[name] = parameter

    def finish(self, logits: torch.Tensor, embeddings: torch.Tensor, graph: Mapping[str, Shown]) -> tuple[torch.Tensor, LinearRun]:
        """The logits with the soft cap linear too, and what was gathered.

        Raises:
            TraceError: the run did not pass a hook that freezes it.
        """
        missed = sorted(self._must - self._reached)
        if missed:
            raise self._refusal(f"a run does not reach {missed[0]!r}")
        if "cap" in self._seen:
            before = self._seen.pop("cap")
            logits = _as(logits, before * _quotient(before, logits))
        self.run._embeddings, self.run.graph = embeddings, graph
        return logits, self.run

    def _refusal(self, why: str) -> TraceError:
        info = model_info(self.model)
        return TraceError(f"No linear model of this {info.architecture} ({info.backend} backend): {why}. gradients=True has the true gradients.")
