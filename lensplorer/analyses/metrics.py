"""What a patching experiment measures: one number per run, a token's logit or log-probability, a logit difference, or a function of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError
from lensplorer.running import Hook
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


#: A metric; a token, for its logit; two, for the difference of their logits; or logits [batch, position, d_vocab] → numbers [batch].
MetricLike: TypeAlias = Metric | str | int | tuple[str | int, str | int] | Callable[[torch.Tensor], torch.Tensor]


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
    """

    name: str
    position: int | None
    _of: Callable[[torch.Tensor], torch.Tensor]

    @property
    def hooks(self) -> list[Hook]:
        """Hooks that leave only the position read to the unembedding, whose product is the largest of a small model."""
        if self.position is None:
            return []
        at = self.position
        return [(_UNEMBED_INPUT, lambda value, hook: value[:, at : at + 1])]

    def of_run(self, logits: torch.Tensor) -> torch.Tensor:
        """Of the logits of a run under ``hooks``. [batch, position or 1, d_vocab] → [batch], float32 or wider

        Raises:
            AnalysisError: a function gave something else than one finite number per row.
        """
        values = self._of(logits if self.position is None else logits[:, 0])
        if not isinstance(values, torch.Tensor) or values.shape != (len(logits),):
            shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise AnalysisError(f"A metric gives one number per run, [{len(logits)}] for logits {list(logits.shape)}; this one gave {shape}.")
        if not bool(values.isfinite().all()):
            raise AnalysisError(f"The metric {self.name} is not finite.")
        return values

    def of_trace(self, trace: Trace) -> float:
        """Of a trace as it ran."""
        at = self.position
        logits = trace.logits if at is None else trace.logits_at(at, at + 1)
        return float(self.of_run(logits.detach()[None])[0])


def measure(trace: Trace, metric: MetricLike) -> Measure:
    """The metric made for the prompt of a trace.

    Raises:
        TokenError: a token is not exactly one.
        TraceError: the position is outside the prompt.
    """
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
