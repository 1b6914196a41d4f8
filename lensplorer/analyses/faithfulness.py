"""Is an attribution right? Curves that remove what it calls important, and agreement between methods.

Deletion replaces tokens by the baseline, the highest score first; insertion starts from nothing but baselines and puts them back in the same
order. A faithful attribution makes F fall fast and rise fast: a small area under deletion, a large one under insertion (Petsiuk et al. 2018,
"RISE"). Only the tokens up to the explained position take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.attribution import UNSIGNED
from lensplorer.analyses.base import analysis, choose, make_result
from lensplorer.analyses.question import BASELINES, Question, baseline_embedding, default_baseline
from lensplorer.errors import AnalysisError

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace


@analysis(reads=(), source="Petsiuk et al. 2018, RISE (deletion and insertion)")
def faithfulness_curves(trace: Trace, attribution: xr.Dataset, *, baseline: str | None = None, n_random: int = 4, seed: int = 0) -> xr.Dataset:
    """What F does when the tokens that an attribution ranks first are removed, or put back.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a")
    >>> curves = lp.faithfulness_curves(trace, lp.attribute(trace, " time"))
    >>> curves.deletion.dims, bool(curves.deletion[0] == curves.insertion[-1])
    (('step',), True)

    Args:
        trace: the trace that was attributed.
        attribution: result of ``attribute`` on it.
        baseline: what removed tokens become: ``"zero"``, ``"mean"`` or ``"pad"``. None: the attribution's own, or that of ``attribute``.
        n_random: random orders to compare with; 0 for none.
        seed: of the random orders.

    Returns:
        (step): deletion and insertion, F after that many tokens; random_deletion and random_insertion, the mean over random orders (NaN
        without any); token_position, the token of each step (-1 at step 0). attrs: deletion_area and insertion_area, the mean of F along
        the curve by the trapezoid rule, and those of the random orders.

    Raises:
        AnalysisError: the attribution is not a result of ``attribute`` on this trace.

    Cost: 2 (1 + n_random) forward passes per token, in batches.
    """
    _check(trace, attribution)
    position = int(attribution.attrs["position"])
    if baseline is None:
        baseline = str(attribution.attrs["baseline"]) if attribution.attrs["baseline"] != "none" else default_baseline(trace)
    choose("baseline", baseline, BASELINES)
    versus = attribution.attrs.get("versus_id")
    question = Question(
        trace,
        (position,),
        torch.tensor([int(attribution.attrs["target_id"])]),
        None if versus is None else torch.tensor([int(versus)]),
        str(attribution.attrs["objective"]),
        baseline_embedding(trace, baseline),
    )
    n = position + 1
    order = np.argsort(-attribution.attribution.values[:n], kind="stable")
    random = np.random.default_rng(seed)
    orders = [order, *(random.permutation(n) for _ in range(n_random))]
    keep = torch.ones(len(orders), n + 1, question.length, dtype=torch.bool)  # [order, step, position]
    for index, one in enumerate(orders):
        for step in range(n):
            keep[index, step + 1 :, one[step]] = False
    within = torch.arange(question.length) < n
    deletion = question.without(keep.flatten(0, 1)).reshape(len(orders), n + 1).numpy()
    insertion = question.without((~keep & within | ~within).flatten(0, 1)).reshape(len(orders), n + 1).numpy()
    insertion[:, -1] = deletion[:, 0]  # the whole prompt, in both
    curves = {
        "deletion": deletion[0],
        "insertion": insertion[0],
        "random_deletion": deletion[1:].mean(0) if n_random else np.full(n + 1, np.nan),
        "random_insertion": insertion[1:].mean(0) if n_random else np.full(n + 1, np.nan),
    }
    variables: dict[str, tuple[Sequence[str], Any]] = {name: (["step"], values) for name, values in curves.items()}
    attrs: dict[str, Any] = {name + "_area": float(np.trapezoid(values) / n) for name, values in curves.items()}
    attrs |= {name: attribution.attrs[name] for name in ("method", "target", "objective", "position")}
    return make_result(
        trace,
        faithfulness_curves,
        {**variables, "token_position": (["step"], np.concatenate([[-1], order]))},
        {"step": np.arange(n + 1), "step_token": ("step", np.array(["", *(trace.token_texts[i] for i in order)], dtype=object))},
        removed_to=baseline,
        **attrs,
    )


@analysis(reads=(), source="Spearman 1904 (rank correlation); overlap of the k tokens with the largest magnitude")
def attribution_agreement(trace: Trace, attributions: Sequence[xr.Dataset], *, top_k: int = 5) -> xr.Dataset:
    """How far attributions of the same prediction agree.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a")
    >>> methods = [lp.attribute(trace, " time", method=method) for method in ("occlusion", "integrated_gradients")]
    >>> lp.attribution_agreement(trace, methods).rank_correlation.dims
    ('attribution', 'other')

    Args:
        trace: the trace that was attributed.
        attributions: two or more results of ``attribute`` on it, for one position.
        top_k: how many tokens count as the top; all when the prompt is shorter.

    Returns:
        (attribution, other), both method names: rank_correlation, Spearman's, ties sharing their mean rank, -1..1, NaN when one is constant;
        top_k_overlap, the share of common tokens among the top k, 0..1. Two signed methods are compared by signed score; where one is
        unsigned both are compared by magnitude. The top is by magnitude.

    Raises:
        AnalysisError: fewer than two attributions, one not of this trace, different positions or targets, or top_k below 1.

    Cost: a sort; no forward pass.
    """
    if len(attributions) < 2:
        raise AnalysisError(f"attribution_agreement compares two attributions or more, got {len(attributions)}.")
    if top_k < 1:
        raise AnalysisError(f"top_k must be at least 1, got {top_k}.")
    for attribution in attributions:
        _check(trace, attribution)
    asked = {tuple(attribution.attrs.get(name) for name in ("position", "target_id", "versus_id")) for attribution in attributions}
    if len(asked) > 1:
        raise AnalysisError(f"The attributions explain different predictions (position, target, versus): {sorted(asked, key=str)}.")
    n = int(attributions[0].attrs["position"]) + 1
    names = [str(attribution.attrs["method"]) for attribution in attributions]
    scores = [attribution.attribution.values[:n].astype(np.float64) for attribution in attributions]
    k = min(top_k, n)
    tops = [set(np.argsort(-np.abs(score), kind="stable")[:k].tolist()) for score in scores]
    correlation, overlap = np.empty((2, len(names), len(names)))
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            magnitude = one in UNSIGNED or other in UNSIGNED
            a, b = (np.abs(scores[i]), np.abs(scores[j])) if magnitude else (scores[i], scores[j])
            correlation[i, j] = rank_correlation(a, b)
            overlap[i, j] = len(tops[i] & tops[j]) / k
    dims = ["attribution", "other"]
    labels = np.array(names, dtype=object)
    return make_result(
        trace,
        attribution_agreement,
        {"rank_correlation": (dims, correlation), "top_k_overlap": (dims, overlap)},
        {"attribution": labels, "other": labels},
        position=n - 1,
        target=attributions[0].attrs["target"],
        top_k=k,
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of ranks, ties sharing their mean rank; NaN when one of them is constant."""
    from scipy.stats import rankdata

    x, y = rankdata(a) - (len(a) + 1) / 2, rankdata(b) - (len(b) + 1) / 2
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def _check(trace: Trace, attribution: xr.Dataset) -> None:
    if attribution.attrs.get("analysis") != "attribute":
        raise AnalysisError(f"Expected a result of attribute(trace, target), got one of {attribution.attrs.get('analysis', 'no analysis')!r}.")
    if list(attribution.token.values) != trace.token_texts:
        raise AnalysisError("The attribution is of another prompt than this trace.")
