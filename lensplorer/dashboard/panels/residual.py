"""Who wrote the logit: each part's direct contribution, or what it does through later parts too, beside what removal really costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.analyses.components import component_attribution
from lensplorer.analyses.patching import verify_by_ablation
from lensplorer.analyses.residual import residual_decomposition
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, bars, completeness_badge, heat, plain, symmetric
from lensplorer.dashboard.panels.target import AGAINST, name_of, versus_of

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_DIRECT, _TOTAL, _INDIRECT = "direct", "total", "indirect"
_ABOUT = {
    True: "Σ contributions = the model's own logit: how far the sum misses, relative.",
    False: "At every depth, the residual stream's terms and the constants behind it sum to the logit: how far the worst sum misses, relative.",
}
_MOST_HEADS = 12
_MOST_POSITIONS = 320  #: of a long text, those whose share of a part is sent


def _build(explorer: Explorer, settings: Settings) -> Picture:
    target, kind, unit = explorer.target, settings["contribution"], settings["unit"]
    versus = versus_of(explorer, settings, target)
    name = name_of(explorer, target, versus)
    options: dict[str, Any] = {"versus": versus, "unit": unit}
    if kind != _DIRECT:
        result = explorer(component_attribution, target, **options, position=explorer.position)
        logit = f"The logit of {name}: {float(result.attrs['value']):+.4g}. Parts follow each other, so what they do in all does not sum to it."
    else:  # what heads read stands at all positions
        result = (
            explorer(residual_decomposition, target, **options, position=explorer.position)
            if unit == "source"
            else explorer.look(residual_decomposition, target, **options)
        )
        logit = f"The logit of {name}: {float(result.attrs['logit']):+.4g}."
    figure, note = {"layer": _by_layer, "head": _by_head, "source": _by_source}[unit](explorer, settings, result)
    if unit == "layer" and _can_verify(settings) and settings["verify"]:
        note = _verify(explorer, settings, target, versus, figure)
    return {
        "figures": [figure],
        "title": f"{name}: {kind} contributions",
        "note": logit + note,
        "badge": completeness_badge(result, _ABOUT[kind == _DIRECT], good=1e-4, near=1e-3),
    }


def _contributions(result: Any, kind: str) -> np.ndarray:
    """Of either analysis, summed over the positions where a part wrote."""
    if "contribution" in result:
        return np.asarray(result.contribution.values)
    return np.asarray((result[kind].sum("position") if "position" in result[kind].dims else result[kind]).values)


def _by_layer(explorer: Explorer, settings: Settings, result: Any) -> tuple[dict[str, Any], str]:
    kind = settings["contribution"]
    series = {name: _contributions(result, name) for name in dict.fromkeys((kind, _DIRECT))}
    more: dict[str, Any] = {}
    if kind != _DIRECT:
        first = max(0, explorer.position + 1 - _MOST_POSITIONS)
        shares = result[kind].values[:, first : explorer.position + 1]
        bound = symmetric(shares)
        more["overlay"] = {"values": plain(shares), "first": first, "low": -bound, "high": bound, "quantity": "signed", "unit": "logits"}
    return bars([str(name) for name in result.component.values], series, unit="logits", **more), ""


def _verify(explorer: Explorer, settings: Settings, target: int, versus: str | int | None, figure: dict[str, Any]) -> str:
    """Put what each part's removal costs into the figure."""
    kind = settings["contribution"]
    measured = explorer(verify_by_ablation, target, versus=versus, contribution=kind, position=explorer.position)
    lost = dict(zip(map(str, measured.component.values), measured.measured.values))
    figure["series"].append({"name": "lost when removed", "values": plain([lost.get(name, np.nan) for name in figure["labels"]])})
    return f" {kind.capitalize()} contribution and effect of removal correlate at {float(measured.attrs['correlation']):.2f}."


def _by_head(explorer: Explorer, settings: Settings, result: Any) -> tuple[dict[str, Any], str]:
    values = _contributions(result, settings["contribution"])
    bound = symmetric(values)
    figure = heat(
        values,
        rows=[f"block {layer}" for layer in range(len(values))],
        columns=[f"head {head}" for head in range(values.shape[1])],
        low=-bound,
        high=bound,
        quantity="signed",
        unit="logits",
        row="block",
        column="head",
        pick={"panel": "attention", "show": "one head"},
    )
    rest = f" Heads {float(np.nansum(values)):+.3g}, all else {float(result.rest):+.3g}." if "rest" in result else ""
    return figure, rest


def _by_source(explorer: Explorer, settings: Settings, result: Any) -> tuple[dict[str, Any], str]:
    values = _contributions(result, settings["contribution"])  # [layer, head, source]
    shares = values.sum(-1)
    order = np.argsort(-np.abs(shares), axis=None)[:_MOST_HEADS]
    layers, heads = np.unravel_index(order, shares.shape)
    rows = values[layers, heads]
    bound = symmetric(rows)
    figure = heat(
        rows,
        rows=[f"{layer}.{head}" for layer, head in zip(layers, heads)],
        columns=explorer.shown_tokens()[: rows.shape[1]],
        low=-bound,
        high=bound,
        quantity="signed",
        unit="logits",
        row="head",
        column="position",
        mark=explorer.position,
        overlay=True,
    )
    return figure, f" The {len(order)} heads that contribute most, by the token they read from."


def _can_verify(settings: Settings) -> bool:
    return settings["unit"] == "layer" and settings["contribution"] != _INDIRECT


def _seconds(explorer: Explorer, settings: Settings) -> float:
    runs = 0 if settings["contribution"] == _DIRECT else 3  # forward and backward
    if settings["verify"] and _can_verify(settings):
        runs += runs + 2 * explorer.n_layers
    return runs * explorer.forward_seconds


DECOMPOSITION = Panel(
    name="decomposition",
    title="Decomposition",
    about="How much each part of the model contributes to the selected candidate's logit: directly, and through what comes after it.",
    build=_build,
    controls=(
        Control("unit", "by", "layer", ("layer", "head", "source")),
        Control(
            "contribution",
            "contribution",
            _DIRECT,
            (_DIRECT, _TOTAL, _INDIRECT),
            about="Direct: straight to the logit. Indirect: through later blocks, with their attention patterns, norms and gates held. Total: both",
        ),
        *AGAINST,
        Control("verify", "verify by ablation", False, when=_can_verify, about="One run per part, with it removed"),
    ),
    reads=(("residual", "residual_decomposition"), ("patching", "verify_by_ablation")),
    seconds=_seconds,
)
