"""Pictures of the sampling pipeline: what each stage took, and each candidate on its way from p_base to p_final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.tokens import visible
from lensplorer.views.attention import heatmap
from lensplorer.views.base import token_formatter, view
from lensplorer.views.style import THEMES, colormap

if TYPE_CHECKING:
    import xarray as xr

PARTS = ("waterfall", "candidates", "stages")

_LABELS = {
    "base": "model",
    "repetition": "repetition",
    "frequency": "frequency",
    "presence": "presence",
    "temperature": "temperature",
    "constraint": "constraint",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "greedy": "greedy",
}


@view("sampling_distribution")
def sampling_distribution(result: xr.Dataset, *, theme: str = "dark", part: str = "waterfall") -> Any:
    """``part="waterfall"``: the mass left after each stage that ran, and what it took; ``"candidates"``: p_base (outline) and p_final (filled) of
    each candidate; ``"stages"``: each candidate's probability after each stage that ran."""
    draw_part = {"waterfall": _waterfall, "candidates": _candidates, "stages": _stages}
    if part not in draw_part:
        raise AnalysisError(f"Unknown part {part!r} of the sampling view.{did_you_mean(part, PARTS)}")
    return draw_part[part](result, theme)


def _waterfall(result: xr.Dataset, theme: str) -> Any:
    import holoviews as hv

    ran = result.isel(stage=np.flatnonzero(result.active.values))
    removed = np.asarray(ran.mass_removed.values, dtype=float)
    left = 1 - np.cumsum(removed)
    names = [_LABELS[str(stage)] for stage in ran.stage.values]
    at = np.arange(len(names))
    details = (removed, ran.mass_moved.values, ran.kl.values, ran.n_kept.values, names)
    kdims, vdims = ["x0", "y0", "x1", "y1"], ["mass_removed", "mass_moved", "kl", "n_kept", "stage"]
    kept = hv.Rectangles((at - 0.4, np.zeros(len(at)), at + 0.4, left, *details), kdims=kdims, vdims=vdims)
    gone = hv.Rectangles((at - 0.4, left, at + 0.4, left + removed, *details), kdims=kdims, vdims=vdims)
    colours = THEMES[theme]
    kept = kept.opts(color=colormap("probability", theme)[-1], line_color=colours["line"], tools=["hover"])
    gone = gone.opts(color=colours["accent"], line_color=colours["line"], tools=["hover"])
    return (kept * gone).opts(
        title=f"From p_base to p_final: {100 * float(result.attrs['mass_kept']):.1f} % kept",
        xlabel="stage",
        ylabel="probability mass left",
        xlim=(-0.6, len(at) - 0.4),
        ylim=(0.0, 1.02),
        xticks=[int(index) for index in at],
        xformatter=token_formatter(names),
        xrotation=45,
        width=480,
        height=280,
        bgcolor=colours["card"],
    )


def _candidates(result: xr.Dataset, theme: str) -> Any:
    import holoviews as hv

    base, final = (np.asarray(result[name].values, dtype=float) for name in ("p_base", "p_final"))
    texts = [str(text) for text in result.token.values]
    at = np.arange(len(texts))
    zero = np.zeros(len(texts))
    status = [
        "excluded by the constraint" if not valid else "excluded" if not kept else "chosen" if chosen else "kept"
        for valid, kept, chosen in zip(result.valid.values, result.kept.values, result.chosen.values)
    ]
    details = (base, final, result["rank"].values, [visible(text) for text in texts], status)
    kdims, vdims = ["left", "bottom", "right", "top"], ["p_base", "p_final", "rank", "token", "status"]
    colours = THEMES[theme]
    edge = np.where(result.chosen.values, colours["accent"], colours["line"])
    filled = hv.Rectangles((zero, at - 0.42, final, at + 0.42, *details, edge), kdims=kdims, vdims=[*vdims, "edge"])
    filled = filled.opts(color=hv.dim("p_final"), cmap=colormap("probability", theme), clim=(0.0, 1.0), line_color="edge", tools=["hover"])
    outline = hv.Rectangles((zero, at - 0.42, base, at + 0.42, *details), kdims=kdims, vdims=vdims)
    outline = outline.opts(fill_alpha=0.0, line_color=colours["muted"], line_dash="dashed", tools=["hover"])
    return (filled * outline).opts(
        title="p_final (filled) and p_base (outline)",
        xlabel="probability",
        ylabel="",
        xlim=(0.0, max(1e-9, 1.05 * float(max(base.max(initial=0.0), final.max(initial=0.0))))),
        ylim=(-0.6, len(texts) - 0.4),
        invert_yaxis=True,
        yticks=[int(index) for index in at],
        yformatter=token_formatter(texts),
        width=360,
        height=int(np.clip(80 + 18 * len(texts), 140, 900)),
        bgcolor=colours["card"],
    )


def _stages(result: xr.Dataset, theme: str) -> Any:
    ran = result.isel(stage=np.flatnonzero(result.active.values))
    names = [_LABELS[str(stage)] for stage in ran.stage.values]
    image = heatmap(
        ran.p.values,
        x="candidate",
        y="stage",
        value="p",
        title="Probability after each stage",
        theme=theme,
        x_texts=[str(text) for text in result.token.values],
        y_texts=names,
        quantity="probability",
    )
    return image
