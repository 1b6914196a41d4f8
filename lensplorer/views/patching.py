"""Pictures of patching: grids of effects, and what was predicted against what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.views.attention import heatmap
from lensplorer.views.base import view
from lensplorer.views.style import CATEGORIES, THEMES

if TYPE_CHECKING:
    import xarray as xr


@view("activation_patching", "attribution_patching")
def patching_grid(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Layers down, positions or heads across; blue brings the clean answer back, red goes the other way."""
    name = "effect" if "effect" in result else "estimate"
    values = result[name]
    unit = str(values.dims[1])
    texts = list(result.token.values) if unit == "position" else None
    kind = "Effect of patching" if name == "effect" else "Estimated effect (first order) of patching"
    return heatmap(
        values.values,
        x=unit,
        y="layer",
        value=name,
        title=f"{kind} {result.attrs['hook']}",
        theme=theme,
        x_texts=texts,
        y_title="layer",
        quantity="signed",
    )


@view("confirm_patching", "verify_by_ablation")
def predicted_against_measured(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A point per component; on the dashed line, prediction and measurement agree."""
    import holoviews as hv

    predicted, measured = result.predicted.values, result.measured.values
    ends = np.array([min(predicted.min(), measured.min(), 0.0), max(predicted.max(), measured.max(), 0.0)])
    margin = 0.05 * max(float(np.ptp(ends)), 1e-6)
    limits = (float(ends[0]) - margin, float(ends[1]) + margin)
    line = hv.Curve((ends, ends), kdims=["predicted"], vdims=["measured"]).opts(color=THEMES[theme]["muted"], line_dash="dashed", line_width=1)
    points = hv.Points((predicted, measured, list(result.component.values)), kdims=["predicted", "measured"], vdims=["component"])
    kind = result.attrs.get("contribution")  # None: of a patch
    correlation = float(result.attrs["correlation"])
    agreement = f", correlation {correlation:.2f}" if np.isfinite(correlation) else ""
    return (line * points.opts(color=CATEGORIES[0], size=8, tools=["hover"])).opts(
        width=460,
        height=420,
        xlim=limits,
        ylim=limits,
        title=(f"{kind.capitalize()} contribution and effect of ablation" if kind else "Estimated and measured effect") + agreement,
        xlabel=f"{kind} contribution" if kind else "estimated",
        ylabel="effect of ablation" if kind else "measured",
        bgcolor=THEMES[theme]["card"],
    )
