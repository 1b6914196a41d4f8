"""What is measured of a run: one number, a token's logit or log-probability, a logit difference, an activation along a direction, or a function of
logits. Patching experiments and the attributions of the local linear model take the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch

from lensplorer.analyses.base import check_finite
from lensplorer.analyses.unembedding import ROUNDING
from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_hook
from lensplorer.linear import LINEAR, LinearRun
from lensplorer.running import Hook, Run, run_model
from lensplorer.tokens import token_text
from lensplorer.trace import Trace

_UNEMBED_INPUT = "unembed.hook_in"


@dataclass(frozen=True)
class Metric:
    """A token's logit or log-probability at a position, or the difference to a second token's.

    Attributes:
        target, versus: text of exactly one token, leading space significant, or id.
        log_prob: of log-probabilities instead of logits.
        position: where the prediction is read; -1 is the last.
    """

    target: str | int
    versus: str | int | None = None
    log_prob: bool = False
    position: int = -1


@expects
@dataclass(frozen=True, eq=False)
class Reading:
    """An activation along a direction: a head's output, what a probe reads, an SAE feature before its activation function.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> trace = lp.run_trace(model, "The capital of France is")
    >>> paris = model.W_U[:, lp.run_trace(model, " Paris", prepend_bos=False).tokens[0]]
    >>> head = lp.Reading("blocks.2.attn.hook_z", model.W_O[2, 2] @ paris, head=2)  # what head 2.2 writes towards " Paris"
    >>> lp.attribute(trace, head, method="linear").attribution.dims
    ('position',)

    Attributes:
        name: the activation's hook.
        vector: the direction; a constant that is added to it, as an SAE's bias, moves no attribution. [d]
        position: where it is read; -1 is the last.
        head: of an activation per head; None: the activation has no heads, or the vector is of all of them, joined.
    """

    name: str
    vector: torch.Tensor
    position: int = -1
    head: int | None = None

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """[batch, ...] at the position → [batch], float32 or wider

        Raises:
            AnalysisError: the direction is not of this activation.
        """
        rows = rows.flatten(1) if self.head is None else rows[:, self.head]
        if self.vector.shape != rows.shape[1:]:
            raise AnalysisError(f"A direction in {self.name!r} has shape {list(rows.shape[1:])}, got {list(self.vector.shape)}.")
        wide = torch.promote_types(rows.dtype, torch.float32)
        return rows.to(wide) @ self.vector.detach().to(rows.device, wide)


#: A metric; a token, for its logit; two, for the difference of their logits; or logits [batch, position, d_vocab] → numbers [batch].
MetricLike: TypeAlias = Metric | Reading | str | int | tuple[str | int, str | int] | Callable[[torch.Tensor], torch.Tensor]


@expects
def logit_difference(target: str | int, versus: str | int, *, position: int = -1) -> Metric:
    """The metric logit(target) - logit(versus): what both tokens have in common cancels.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean, corrupt = (lp.run_trace(model, f"The capital of {country} is") for country in ("France", "Italy"))
    >>> metric = lp.logit_difference(" Paris", " Rome")
    >>> effects = lp.activation_patching(clean, corrupt, "resid_pre", metric).effect  # [layer, position]
    >>> round(float(effects.sel(layer=0).max()), 3)
    1.0

    Raises:
        TokenError: when it is used: a token is not exactly one.
    """
    return Metric(target, versus, position=position)


@expects
def log_prob(target: str | int, *, position: int = -1) -> Metric:
    """The metric ln p(target), nats.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean, corrupt = (lp.run_trace(model, f"The capital of {country} is") for country in ("France", "Italy"))
    >>> effects = lp.activation_patching(clean, corrupt, "resid_pre", lp.log_prob(" Paris"))
    >>> effects.attrs["metric_clean"] > effects.attrs["metric_corrupt"]
    True

    Raises:
        TokenError: when it is used: the target is not exactly one token.
    """
    return Metric(target, log_prob=True, position=position)


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric made for one prompt.

    Attributes:
        name: as attrs show it.
        position: the only one it reads, or None where it reads any.
        activation: what it reads of a run; None: the logits.
    """

    name: str
    position: int | None
    _of: Callable[[torch.Tensor], torch.Tensor]
    activation: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Activations that a run must record for it."""
        return () if self.activation is None else (self.activation,)

    @property
    def hooks(self) -> list[Hook]:
        """Hooks that leave only the position read to the unembedding, whose product is the largest of a small model."""
        at = self.position
        return [] if at is None else [(_UNEMBED_INPUT, lambda value, hook: value[:, at : at + 1])]

    def of_run(self, run: Run) -> torch.Tensor:
        """Of a run under ``hooks`` that recorded ``reads``, with its graph if it has one. [batch], float32 or wider

        Raises:
            AnalysisError: a function gave something else than one finite number per row.
        """
        if self.activation is not None:
            return self.of_rows(run.value(self.activation)[:, self.position])
        return self.of_rows(run.logits if self.position is None else run.logits[:, 0])

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Of what stands at the position: logits [batch, d_vocab], or the activation [batch, ...]; of all logits where it reads any. [batch]"""
        values = self._of(rows)
        if not isinstance(values, torch.Tensor) or values.shape != (len(rows),):
            shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise AnalysisError(f"A metric gives one number per run, [{len(rows)}] for logits {list(rows.shape)}; this one gave {shape}.")
        if not bool(values.isfinite().all()):
            raise AnalysisError(f"The metric {self.name} is not finite.")
        return values

    def of_trace(self, trace: Trace) -> float:
        """Of a trace as it ran."""
        at = self.position
        if self.activation is not None and self.activation not in trace:
            run = run_model(trace.model, trace.tokens[None], reads=self.reads, interventions=trace.interventions)
            return float(self.of_run(run)[0])
        if self.activation is not None and at is not None:
            return float(self.of_rows(trace.at(self.activation, at).detach()[None])[0])
        logits = trace.logits if at is None else trace.logits_at(at, at + 1)[0]
        return float(self.of_rows(logits.detach()[None])[0])


def measure(trace: Trace, metric: MetricLike) -> Measure:
    """The metric made for the prompt of a trace.

    Raises:
        TokenError: a token is not exactly one.
        TraceError: the position is outside the prompt, or the model has no such activation.
    """
    if isinstance(metric, Reading):
        check_hook(trace.model, metric.name)
        where = "" if metric.head is None else f", head {metric.head}"
        return Measure(f"{metric.name}{where} along a direction", trace.position(metric.position), metric.of, metric.name)
    if callable(metric):
        return Measure(getattr(metric, "__name__", type(metric).__name__), None, metric)
    if isinstance(metric, tuple):
        if len(metric) != 2:
            raise AnalysisError(f"A metric of tokens is one (its logit) or two (the difference of their logits), got {len(metric)}.")
        metric = Metric(metric[0], metric[1])
    elif not isinstance(metric, Metric):
        metric = Metric(metric)
    ids = [trace.token_id(token) for token in ([metric.target] if metric.versus is None else [metric.target, metric.versus])]

    def of(z: torch.Tensor) -> torch.Tensor:
        z = z if z.dtype == torch.float64 else z.float()  # [batch, d_vocab]
        z = z.log_softmax(-1) if metric.log_prob else z
        return z[:, ids[0]] if len(ids) == 1 else z[:, ids[0]] - z[:, ids[1]]

    quantity = "log-probability" if metric.log_prob else "logit"
    name = f"{quantity} of " + " minus ".join(repr(token_text(trace.model.tokenizer, token_id)) for token_id in ids)
    return Measure(name, trace.position(metric.position), of)


def aim(target: str | int | Reading, versus: str | int | None, position: int) -> Metric | Reading:
    """What an analysis is asked to explain, from its arguments.

    Raises:
        AnalysisError: a second token beside a direction.
    """
    if not isinstance(target, Reading):
        return Metric(target, versus, position=position)
    if versus is not None:
        raise AnalysisError("versus names a token, and target is a Reading: give the difference of two directions as its vector instead.")
    return target


def linear_values(trace: Trace, measures: Sequence[Measure], *, rule: str, reads: Iterable[str] = ()) -> tuple[list[torch.Tensor], LinearRun]:
    """Numbers of the trace's local linear model, each with its graph.

    Args:
        trace: any; its own linear run serves where it has the rule and the activations, else the prompt is run once more.
        measures: each of one position.
        rule: see ``lensplorer.linear``.
        reads: further activations whose gradients are wanted.

    Raises:
        TraceError: the model has no local linear model (the message says why), or more memory than is free.

    Cost: nothing, or one forward pass.
    """
    names = {*reads, *(name for measure in measures for name in measure.reads)}
    kept = sorted({measure.position for measure in measures if measure.position is not None and measure.activation is None}) or [len(trace) - 1]
    linear = trace.linear
    if linear is not None and linear.rule == rule and names <= linear.graph.keys():
        logits = trace.logits[None, kept]
    else:
        rows: Hook = (_UNEMBED_INPUT, lambda value, hook: value[:, kept])
        run = run_model(
            trace.model, trace.tokens[None], reads=names, interventions=trace.interventions, hooks=[rows], gradients=LINEAR, rule=rule
        )  # fmt: skip
        logits, linear = run.logits, cast(LinearRun, run.linear)
    values = []
    for one in measures:
        of = logits[:, kept.index(cast(int, one.position))] if one.activation is None else linear.graph[one.activation].value[:, one.position]
        values.append(one.of_rows(of)[0])
    return values, linear


def gap(terms: Iterable[float], value: float) -> float:
    """|Σ terms - value|, relative to the largest of them."""
    terms = list(terms)
    return float(abs(sum(terms) - value) / max(abs(value), *map(abs, terms), 1e-30))


def require_complete(trace: Trace, terms: Iterable[float], value: float) -> None:
    """
    Raises:
        AnalysisError: the terms do not sum to the value of the local linear model, by more than rounding; or they are not finite.
    """
    missed = gap(terms, value)
    if not missed <= ROUNDING[trace.dtype]:
        check_finite(trace)
        raise AnalysisError(
            f"The terms of the local linear model miss the value {value:.6g} by {missed:.1e} of the largest: this {trace.info.architecture} does"
            " something that is not linear with attention, norms and gates held, or an intervention does. Refused."
        )
