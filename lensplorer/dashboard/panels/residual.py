"""Who wrote the logit: the exact decomposition by layer, head and source token, beside what removal really costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lensplorer.analyses.patching import verify_by_ablation
from lensplorer.analyses.residual import residual_decomposition
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, bars, completeness_badge, heat, symmetric
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_ABOUT = "Σ contributions = the model's own logit: how far the sum misses, relative."
_MOST_HEADS = 12


def _build(explorer: Explorer, settings: Settings) -> Picture:
    target, versus, position = explorer.target, settings["versus"] or None, explorer.position
    unit = settings["unit"]
    about = f"logit of {explorer.shown_token(target)}" + (f" − {visible(versus)}" if versus else "")
    if unit == "source":  # what heads read stands at all positions
        result = explorer(residual_decomposition, target, versus=versus, unit=unit, position=position)
    else:
        result = explorer.look(residual_decomposition, target, versus=versus, unit=unit)
    total = f"The {about}: {float(result.attrs['logit']):+.4g}."
    if unit == "layer":
        names = [str(name) for name in result.component.values]
        series = {"contribution": result.contribution.values}
        if settings["verify"]:
            measured = explorer(verify_by_ablation, target, versus=versus, position=position)
            lost = dict(zip(map(str, measured.component.values), measured.measured.values))
            series["lost when removed"] = np.array([lost.get(name, np.nan) for name in names])
            total += f" Direct contribution and effect of removal correlate at {float(measured.attrs['correlation']):.2f}."
        figure = bars(names, series, unit="logits")
    elif unit == "head":
        values = result.contribution.values
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
        total += f" Heads {float(np.nansum(values)):+.3g}, all else {float(result.rest):+.3g}."
    else:
        values = result.contribution.values  # [layer, head, source]
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
            mark=position,
        )
        total += f" The {len(order)} heads that contribute most, by the token they read from."
    return {
        "figures": [figure],
        "title": f"Parts of the {about}",
        "note": total,
        "badge": completeness_badge(result, _ABOUT, good=1e-4, near=1e-3),
    }


def _seconds(explorer: Explorer, settings: Settings) -> float:
    runs = 2 * explorer.n_layers if settings["verify"] and settings["unit"] == "layer" else 0
    return runs * explorer.forward_seconds


DECOMPOSITION = Panel(
    name="decomposition",
    title="Decomposition",
    about="How much each part of the model wrote directly to the selected candidate's logit.",
    build=_build,
    controls=(
        Control("unit", "by", "layer", ("layer", "head", "source")),
        Control("versus", "against", "", about="Take apart the difference to this token: exactly one, with its leading space"),
        Control("verify", "verify by ablation", False, when=lambda settings: settings["unit"] == "layer", about="One run per part, with it removed"),
    ),
    reads=(("residual", "residual_decomposition"), ("patching", "verify_by_ablation")),
    seconds=_seconds,
)
