"""What a prediction rests on: one or two attribution methods over the tokens, and the matrix of a whole generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.analyses.attribution import GRADIENT_METHODS, METHODS, UNSIGNED, attribute, attribution_matrix
from lensplorer.analyses.faithfulness import attribution_agreement
from lensplorer.analyses.question import OBJECTIVES
from lensplorer.dashboard.asking import Call, Here, call
from lensplorer.dashboard.costs import key_of
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, columns, completeness_badge, heat, symmetric
from lensplorer.dashboard.panels.target import AGAINST, name_of, versus_of
from lensplorer.linear import LINEAR, RULES

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_ABOUT = "Σ attributions = F(input) − F(baseline): how far the sum misses, relative; good within 1 %."
_ABOUT_LINEAR = "Σ tokens + positions + biases = the logit: how far the sum misses, relative."
_NONE = "nothing"
_UNASKED = 3.0  # seconds after which integrated gradients stop where nobody has agreed to what they cost
#: Passes of the model, forward and backward counted as three, that a method takes on a prompt of n tokens. Integrated gradients took 281 to 469
#: gradients on SmolLM2 for 5 to 14 tokens; where learned positions hold the path together they take a tenth.
_PASSES: dict[str, Callable[[float], float]] = {
    "saliency": lambda n: 3.0,
    "input_x_gradient": lambda n: 3.0,
    "input_x_gradient_norm": lambda n: 3.0,
    LINEAR: lambda n: 3.0,
    "integrated_gradients": lambda n: min(3.0, n / 15) * 400,  # gradients run in batches, where short prompts take less than a run of their own
    "occlusion": lambda n: n,
    "attention": lambda n: 0.0,
    "rollout": lambda n: 0.0,
    "gradient_shap": lambda n: 3.0 * 64,
    "deeplift": lambda n: 6.0,
    "lime": lambda n: 8.0 * n,
    "kernel_shap": lambda n: 8.0 * n,
    "feature_ablation": lambda n: n,
}


def words(method: str) -> str:
    return method.replace("_", " ")


_LABELS = {words(method): method for method in METHODS}


def _methods(settings: Settings) -> list[str]:
    """Those shown, one or two."""
    return [_LABELS[name] for name in (settings["method"], settings.get("second", _NONE)) if name != _NONE]


def _is_linear(settings: Settings) -> bool:
    return LINEAR in _methods(settings)


_RULE = Control("rule", "rule", RULES[0], RULES, when=_is_linear, about="How a gated MLP's product is shared: the gate held, or half and half")


def _options(settings: Settings, method: str) -> dict[str, Any]:
    return {"method": method} | ({"rule": settings["rule"]} if method == LINEAR else {})


def _question(explorer: Explorer, settings: Settings, method: str) -> Call:
    objective = "logit" if _is_linear(settings) else settings["of"]
    versus = versus_of(explorer, settings, explorer.aim)
    options = {**_options(settings, method), "versus": versus, "objective": objective, "position": explorer.position}
    options |= _bound(explorer, "attribution", settings, method)
    return call(attribute, Here(gradients=method in GRADIENT_METHODS), explorer.aim, **options)


def _bound(explorer: Explorer, panel: str, settings: Settings, method: str) -> dict[str, float]:
    """The seconds that a method without an end of its own gets: a few, unless the person has agreed to the estimate."""
    asked = explorer.costs.is_granted(key_of(panel, dict(settings)))
    return {"max_seconds": _UNASKED} if method == "integrated_gradients" and not asked else {}


def _badge(result: Any) -> dict[str, str] | None:
    """The identity of the method, where it has one."""
    if result.attrs["method"] == LINEAR:
        return completeness_badge(result, _ABOUT_LINEAR, good=1e-4, near=1e-3)
    return completeness_badge(result, _ABOUT, good=0.01, near=0.05)


def _rest(result: Any) -> str:
    """What of a linear attribution is no token's."""
    if result.attrs["method"] != LINEAR:
        return ""
    terms = {"tokens": float(result.attribution.sum())}
    terms |= {name.removeprefix("rest_"): float(value) for name, value in result.attrs.items() if name.startswith("rest_") and value}
    said = ", ".join(f"{name} {value:+.4g}" for name, value in terms.items())
    whole = f"{float(result.attrs['value']):+.4g} logits"
    return f"{said.capitalize()}: together {whole}." if len(terms) > 1 else f"The tokens make up the whole: {whole}."


def _figure(explorer: Explorer, result: Any, method: str) -> dict[str, Any]:
    values = result.attribution.values.astype(float)
    values[explorer.position + 1 :] = np.nan
    bound = symmetric(values)
    signed = method not in UNSIGNED
    return columns(
        values,
        explorer.shown_tokens(),
        low=-bound if signed else 0.0,
        high=bound,
        quantity="signed" if signed else "attention",
        unit=str(result.attribution.attrs.get("units", "")).replace("1", ""),
        bottom=float(np.nanmin(values, initial=0.0)),
        top=float(np.nanmax(values, initial=0.0)),
        label=words(method),
        overlay=True,
    )


def _build(explorer: Explorer, settings: Settings) -> Picture:
    methods = _methods(settings)
    questions = [_question(explorer, settings, method) for method in methods]
    results = [explorer.ask(question) for question in questions]
    notes = [result.attrs.get("note") or _rest(result) for result in results]
    sure = ["note" not in result.attrs for result in results]  # the sentence stands in place of a picture that looks as sure as any other
    if len(results) == 2 and methods[0] != methods[1] and all(sure):
        agreement = explorer(attribution_agreement, tuple(questions))
        notes.append(f"Rank correlation of the two: {float(agreement.rank_correlation.values[0, 1]):.2f}.")
    about = name_of(explorer, explorer.aim, versus_of(explorer, settings, explorer.aim))
    return {
        "figures": [_figure(explorer, result, method) for result, method, shown in zip(results, methods, sure) if shown],
        "title": f"Attribution ({', '.join(map(words, methods))}) of {about}",
        "badge": next((found for found in map(_badge, results) if found), None),
        "note": " ".join(filter(None, notes)),
    }


def _passes(explorer: Explorer, method: str) -> float:
    smooth = method == "integrated_gradients" and explorer.need_session().model.cfg.positional_embedding_type == "standard"
    return _PASSES[method](len(explorer.ids)) / (10 if smooth else 1)


def _seconds(explorer: Explorer, settings: Settings) -> float:
    return sum(_passes(explorer, method) for method in _methods(settings)) * explorer.forward_seconds


ATTRIBUTION = Panel(
    name="attribution",
    title="Attribution",
    span=12,
    about="What the selected candidate, or the one pointed at, rests on: a score per token.",
    build=_build,
    controls=(
        Control("method", "method", LINEAR, tuple(_LABELS)),
        Control("second", "beside", _NONE, (_NONE, *_LABELS), about="A second method, side by side"),
        _RULE,
        Control("of", "of", "logit", tuple(OBJECTIVES), when=lambda settings: not _is_linear(settings)),
        *AGAINST,
    ),
    seconds=_seconds,
)


def _matrix(explorer: Explorer, settings: Settings) -> Picture:
    session = explorer.need_session()
    start = max(1, session.state.prompt.n_given)
    if start >= len(session.ids):
        return {"figures": [], "note": "Append tokens (→ or space): each generated token becomes a row here."}
    method = _LABELS[settings["method"]]
    options = {**_options(settings, method), **_bound(explorer, "matrix", settings, method)}
    result = explorer.ask(call(attribution_matrix, Here(gradients=method in GRADIENT_METHODS), start, **options))
    if "note" in result.attrs:
        return {"figures": [], "note": result.attrs["note"], "badge": _badge(result)}
    values = result.attribution.values.astype(float)
    tokens = explorer.shown_tokens()
    keep = [s for s in range(values.shape[1]) if not (settings["no_special"] and session.ids[s] in explorer.special_ids())]
    shown = values[:, keep]
    bound = symmetric(shown)
    shown = np.where(np.abs(shown) >= settings["least"] / 100 * bound, shown, np.nan)
    signed = method not in UNSIGNED
    figure = heat(
        shown,
        rows=[f"{tokens[int(t)]}" for t in result.generated.values],
        columns=[tokens[s] for s in keep],
        low=-bound if signed else 0.0,
        high=bound,
        quantity="signed" if signed else "attention",
        unit="logits" if signed else "",
        row="generated",
        column="position",
        positions=keep,
        row_positions=[int(t) for t in result.generated.values],
        overlay=True,
    )
    return {
        "figures": [figure],
        "title": f"Attribution ({words(method)}) of each generated token",
        "badge": _badge(result),
        "note": "Point at a row, or at a generated token above: the text takes its colours.",
    }


def _matrix_seconds(explorer: Explorer, settings: Settings) -> float:
    n = len(explorer.ids)
    rows = max(0, n - max(1, explorer.need_session().state.prompt.n_given))
    return _passes(explorer, _LABELS[settings["method"]]) * rows * explorer.forward_seconds


MATRIX = Panel(
    name="matrix",
    title="Attribution of the whole generation",
    about="How much each token speaks for each generated token.",
    build=_matrix,
    controls=(
        Control("method", "method", LINEAR, tuple(_LABELS)),
        _RULE,
        Control("least", "at least, %", 0, low=0, high=100, about="Leave out what is weaker than this share of the strongest"),
        Control("no_special", "no special tokens", True, about="Leave out the columns of special tokens"),
    ),
    is_open=False,
    seconds=_matrix_seconds,
)
