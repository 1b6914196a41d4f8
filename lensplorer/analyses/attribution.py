"""Attribution: a score per input token for one prediction.

F is a target's logit, log-probability, probability, or the difference to a second token, at one position, as a function of the token
embeddings e (``lensplorer.analyses.question``). A token after that position gets exactly 0.

| method | score of token s | |
|---|---|---|
| ``saliency`` | ‖∂F/∂e_s‖₂ | unsigned |
| ``input_x_gradient`` | Σ e_s · ∂F/∂e_s | signed |
| ``input_x_gradient_norm`` | ‖e_s ⊙ ∂F/∂e_s‖₂ | unsigned |
| ``integrated_gradients`` | (e_s - b) · ∫₀¹ ∂F/∂e_s (b + α (e - b)) dα | signed, sums to F(e) - F(b) |
| ``occlusion`` | F(e) - F(e with e_s replaced by b) | signed |
| ``linear`` | e_s · ∂F/∂e_s of the local linear model (``lensplorer.linear``) | signed, with the rest sums to F(e) |
| ``attention`` | pattern at the position, mean over layers and heads | unsigned, knows no target |
| ``rollout`` | ``attention_rollout`` at the position | unsigned, knows no target |

and through Captum ``gradient_shap``, ``deeplift``, ``lime``, ``kernel_shap`` and ``feature_ablation`` (``attribution_captum``).

Sources: Simonyan et al. 2014 (saliency); Shrikumar et al. 2016 (input × gradient); Sundararajan et al. 2017 (integrated gradients);
Zeiler and Fergus 2014 (occlusion); Abnar and Zuidema 2020 (rollout); Achtibat et al. 2024, Jafari et al. 2025 and Golden 2025 (linear).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.attention import PATTERN_READS, attention_rollout, rows_at
from lensplorer.analyses.base import analysis, choose, make_result
from lensplorer.analyses.integrated import gradients_of, integrated_gradients
from lensplorer.analyses.metrics import Measure, Metric, Reading, aim, gap, linear_values, measure, require_complete
from lensplorer.analyses.question import BASELINES, OBJECTIVES, Question, baseline_embedding, default_baseline, needs_gradients
from lensplorer.errors import AnalysisError
from lensplorer.linear import LINEAR, RULES
from lensplorer.tokens import token_text
from lensplorer.trace import run_trace

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

GRADIENT_METHODS = ("saliency", "input_x_gradient", "input_x_gradient_norm")
BASELINE_METHODS = ("integrated_gradients", "occlusion")
ATTENTION_METHODS = ("attention", "rollout")
CAPTUM_METHODS = ("gradient_shap", "deeplift", "lime", "kernel_shap", "feature_ablation")
METHODS = (*GRADIENT_METHODS, LINEAR, *BASELINE_METHODS, *ATTENTION_METHODS, *CAPTUM_METHODS)
UNSIGNED = ("saliency", "input_x_gradient_norm", *ATTENTION_METHODS)

_SOURCE = "Simonyan et al. 2014; Shrikumar et al. 2016; Sundararajan et al. 2017; Zeiler and Fergus 2014; Abnar and Zuidema 2020; Captum"


@analysis(reads=(), source=_SOURCE)
def attribute(
    trace: Trace,
    target: str | int | Reading,
    *,
    versus: str | int | None = None,
    method: str = "integrated_gradients",
    rule: str = "gate",
    position: int = -1,
    objective: str = "logit",
    baseline: str | None = None,
    tolerance: float = 0.01,
    max_steps: int = 1024,
    max_seconds: float | None = None,
    n_samples: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """How much each token of the prompt speaks for a target.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a")
    >>> scores = lp.attribute(trace, " time")
    >>> scores.attribution.dims, scores.attrs["completeness"] <= 0.01
    (('position',), True)

    Args:
        trace: any trace; ``saliency`` and both ``input_x_gradient`` need ``run_trace(..., gradients=True)``, and ``linear`` runs the prompt once
            more unless it has ``gradients="linear"`` and the rule.
        target: token whose prediction is explained: exactly one token, or an id. Of ``linear`` also a ``Reading`` at its own position: a head's
            output, a probe, an SAE feature.
        versus: explain the difference to this token.
        method: see the module, or ``METHODS``.
        rule: of ``linear``, how a gated MLP's product is shared: ``"gate"`` or ``"half"`` (see ``lensplorer.linear``).
        position: the position whose prediction is explained; -1 is the last. Sources are the tokens up to it.
        objective: ``"logit"``, ``"log_prob"`` (nats) or ``"prob"``.
        baseline: the embedding that stands for no token: ``"zero"``, ``"mean"`` (over the vocabulary) or ``"pad"``. None: ``"zero"`` where the
            model adds learned positions, else ``"mean"``, since a norm is singular at a residual of zeros (see ``default_baseline``).
        tolerance: of integrated gradients, the largest relative error of their sum, and of a score to the largest score.
        max_steps: gradients evaluated at most to reach it.
        max_seconds: after about so long they stop as well; None: whenever they are done. What a bound leaves depends on the machine.
        n_samples: samples of gradient SHAP, LIME and kernel SHAP. None: a default that grows with the prompt.
        seed: of those samples.

    Returns:
        (position): attribution, in units of F; 0 after ``position``. attrs: method; target, target_id (and versus, versus_id); objective;
        position; baseline; signed, 1 or 0; value = F. Methods with a baseline add baseline_value = F of nothing but baselines. Those
        whose scores must sum to F(e) - F(b) add completeness, |Σ - (F(e) - F(b))| / |F(e) - F(b)|. Integrated gradients add steps, the gradients
        evaluated; error, the estimate that is held to ``tolerance``; and note, a sentence, only where a bound came first. ``linear``
        adds what is no token's, each computed by itself: rest_positions, rest_biases, rest_interventions; rule; and completeness,
        |Σ + rest - F| relative to the largest of F and the terms.

    Raises:
        TokenError: the target is not exactly one token.
        TraceError: the position is outside the prompt, the trace lacks the gradients that the method needs, or the model has no local linear model.
        AnalysisError: unknown method, objective or baseline; a number that is not finite; an extra that is not installed; terms of ``linear``
            that do not sum to F, or another objective than ``"logit"``, of which it is not complete.

    Cost: gradients: one backward pass; linear: one forward and one backward.
    Integrated gradients: forward and backward at ``steps`` nodes, in batches. Occlusion: one forward
    pass per token, in batches. Attention and rollout: none. Captum: see ``attribution_captum``.
    """
    baseline = default_baseline(trace) if baseline is None else baseline
    if method == LINEAR:
        return _attribute_linear(trace, target, versus, position=position, objective=objective, rule=rule)
    if isinstance(target, Reading):
        raise AnalysisError(f"{method!r} explains tokens; a Reading takes method='linear'.")
    target_id = trace.token_id(target)
    versus_id = None if versus is None else trace.token_id(versus)
    question = make_question(trace, [trace.position(position)], [target_id], versus_id, method=method, objective=objective, baseline=baseline)
    scores, attrs = _answer(question, method, tolerance=tolerance, max_steps=max_steps, max_seconds=max_seconds, n_samples=n_samples, seed=seed)
    attrs = {name: float(values[0]) if isinstance(values, np.ndarray) else values for name, values in attrs.items()}
    return make_result(
        trace,
        attribute,
        {"attribution": (["position"], scores[0])},
        units={"attribution": {"logit": "logits", "log_prob": "nats", "prob": "probability"}[objective] if method not in UNSIGNED else "1"},
        position=question.positions[0],
        **_named_targets(trace, target, versus),
        **_described(method, objective, baseline),
        **attrs,
    )


def _attribute_linear(trace: Trace, target: str | int | Reading, versus: str | int | None, *, position: int, objective: str, rule: str) -> xr.Dataset:
    """``attribute`` of the local linear model."""
    asked = measure(trace, aim(target, versus, position))
    scores, per_row = _linear_scores(trace, [asked], objective=objective, rule=rule)
    attrs: dict[str, Any] = {name: float(values[0]) for name, values in per_row.items()}
    named = {"target": asked.name} if isinstance(target, Reading) else _named_targets(trace, target, versus)
    return make_result(
        trace,
        attribute,
        {"attribution": (["position"], scores[0])},
        units={"attribution": "1" if isinstance(target, Reading) else "logits"},
        position=asked.position,
        **named,
        **_described(LINEAR, objective, "none"),
        rule=rule,
        **attrs,
    )


def _named_targets(trace: Trace, target: str | int, versus: str | int | None) -> dict[str, Any]:
    ids = {name: trace.token_id(token) for name, token in (("target", target), ("versus", versus)) if token is not None}
    return {name: token_text(trace.model.tokenizer, token) for name, token in ids.items()} | {f"{name}_id": token for name, token in ids.items()}


@analysis(reads=(), source=_SOURCE)
def attribution_matrix(
    trace: Trace,
    start: int,
    *,
    method: str = "integrated_gradients",
    rule: str = "gate",
    objective: str = "logit",
    baseline: str | None = None,
    tolerance: float = 0.01,
    max_steps: int = 1024,
    max_seconds: float | None = None,
    n_samples: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """How much each token speaks for each later token of a generated text.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> matrix = lp.attribution_matrix(trace, 2, method="occlusion")
    >>> matrix.attribution.dims, float(matrix.attribution[0, 2])
    (('generated', 'source'), 0.0)

    Args:
        trace: a run over prompt and generated tokens; gradients as in ``attribute``.
        start: index of the first generated token, from 1 (the first token of all has no prediction); negative counts from the end.
        method, rule, objective, baseline, tolerance, max_steps, max_seconds, n_samples, seed: as in ``attribute``.

    Returns:
        (generated, source): attribution; row t explains token t, predicted at position t - 1, and is 0 from source t on. ``generated``
        holds t and generated_token its text. (generated): value = F, and where ``attribute`` has them baseline_value and completeness;
        attrs["completeness"] is the worst row's.

    Raises:
        As ``attribute``; AnalysisError: start is the first token.

    Cost: the runs of one ``attribute`` serve every row; gradients add one backward pass per row. Captum's methods run per row.
    """
    first = trace.position(start)
    if first == 0:
        raise AnalysisError(f"start is the first token, which the model does not predict: expected 1 to {len(trace) - 1}.")
    baseline = default_baseline(trace) if baseline is None else baseline
    generated = np.arange(first, len(trace))
    targets = trace.tokens[first:].tolist()
    attrs: dict[str, Any]
    if method == LINEAR:
        asked = [measure(trace, Metric(target, position=int(t) - 1)) for t, target in zip(generated, targets)]
        scores, attrs = _linear_scores(trace, asked, objective=objective, rule=rule)
        attrs = {"rule": rule, **attrs}
    else:
        question = make_question(trace, [int(t) - 1 for t in generated], targets, None, method=method, objective=objective, baseline=baseline)
        scores, attrs = _answer(question, method, tolerance=tolerance, max_steps=max_steps, max_seconds=max_seconds, n_samples=n_samples, seed=seed)
    per_row = {name: values for name, values in attrs.items() if isinstance(values, np.ndarray)}
    attrs = {name: values for name, values in attrs.items() if name not in per_row}
    if "completeness" in per_row:
        attrs["completeness"] = float(per_row["completeness"].max())
    texts = np.array(trace.token_texts, dtype=object)
    return make_result(
        trace,
        attribution_matrix,
        {"attribution": (["generated", "source"], scores), **{name: (["generated"], values) for name, values in per_row.items()}},
        {
            "generated": generated,
            "generated_token": ("generated", texts[first:]),
            "source": np.arange(len(trace)),
            "source_token": ("source", texts),
        },
        start=first,
        **_described(method, objective, baseline),
        **attrs,
    )


def make_question(
    trace: Trace, positions: list[int], targets: list[int], versus: int | None, *, method: str, objective: str, baseline: str
) -> Question:
    """The checked question of ``attribute``: one row per position and target."""
    choose("method", method, METHODS)
    choose("objective", objective, OBJECTIVES)
    choose("baseline", baseline, BASELINES)
    start = baseline_embedding(trace, baseline if _uses_baseline(method) else "zero")
    others = None if versus is None else torch.full((len(targets),), versus)
    return Question(trace, tuple(positions), torch.tensor(targets), others, objective, start)


def _uses_baseline(method: str) -> bool:
    return method in BASELINE_METHODS or method in CAPTUM_METHODS


def _described(method: str, objective: str, baseline: str) -> dict[str, Any]:
    return {
        "method": method,
        "objective": objective,
        "baseline": baseline if _uses_baseline(method) else "none",
        "signed": int(method not in UNSIGNED),
        "attributed": "token embeddings; learned positions are part of the model",
    }


def _answer(
    question: Question, method: str, *, tolerance: float, max_steps: int, max_seconds: float | None, n_samples: int | None, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores [row, position] and further attrs: an array where each row has its own. [row]"""
    extra: dict[str, Any] = {"value": question.of_trace().detach().double().cpu().numpy()}
    if method in GRADIENT_METHODS:
        scores = gradient_scores(question, method)
    elif method == "integrated_gradients":
        scores, more = integrated_gradients(question, tolerance=tolerance, max_steps=max_steps, max_seconds=max_seconds)
        extra |= more
    elif method == "occlusion":
        scores = occlusion(question)
    elif method in ATTENTION_METHODS:
        scores = attention_scores(question, method)
    else:
        from lensplorer.analyses.attribution_captum import captum_scores

        scores, more = captum_scores(question, method, n_samples=n_samples, seed=seed)
        extra |= more
    return question.pad(scores), extra


def _linear_scores(trace: Trace, asked: list[Measure], *, objective: str, rule: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores [row, position], and further attrs of each row. [row]"""
    if choose("objective", objective, OBJECTIVES) != "logit":
        raise AnalysisError(f"The terms of the local linear model sum to logits and their differences, not to {objective!r}: use objective='logit'.")
    choose("rule", rule, RULES)
    values, linear = linear_values(trace, asked, rule=rule)
    scores, rows = [], []
    for value in values:
        found = linear.gradients(value)
        number = float(value.detach())
        terms = [*found.tokens.tolist(), *found.rest.values()]
        require_complete(trace, terms, number)
        scores.append(found.tokens.float().numpy())
        rows.append({"value": number, "completeness": gap(terms, number), **{f"rest_{name}": term for name, term in found.rest.items()}})
    return np.stack(scores), {name: np.array([row[name] for row in rows]) for name in rows[0]}


# -- the methods: each gives [row, position] -------------------------------------------------------------------------------------------


def gradient_scores(question: Question, method: str) -> torch.Tensor:
    """Saliency and input × gradient, from the trace's own graph."""
    embeddings = needs_gradients(question.trace, method, tuple(name for name in METHODS if name not in GRADIENT_METHODS))
    gradients = gradients_of(question.of_trace(), embeddings)[:, 0].float()  # [row, position, d_model]
    if method == "saliency":
        return torch.linalg.vector_norm(gradients, dim=-1)
    product = gradients * embeddings.detach().float()
    return product.sum(-1) if method == "input_x_gradient" else torch.linalg.vector_norm(product, dim=-1)


def occlusion(question: Question) -> torch.Tensor:
    """F of the prompt minus F with one token's embedding replaced by the baseline."""
    length = question.positions[-1] + 1
    keep = ~torch.eye(question.length, dtype=torch.bool)[:length]
    return question.of_trace().detach().double().cpu()[:, None] - question.without(keep).T


def attention_scores(question: Question, method: str) -> torch.Tensor:
    """What the attention says at the rows' positions, whatever the target."""
    trace = question.trace
    if "blocks.0.attn.hook_pattern" not in trace:
        trace = run_trace(trace.model, trace.tokens.tolist(), reads=PATTERN_READS, interventions=trace.interventions)
    rows = list(question.positions)
    if method == "rollout":
        return torch.from_numpy(attention_rollout(trace).weight.values[rows])
    return torch.stack([rows_at(trace, row).mean((0, 1)) for row in rows])
