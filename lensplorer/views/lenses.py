"""Pictures of the lenses: the grid of what each layer would say, curves over layers, and the contrast of two tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.tokens import visible
from lensplorer.views.attention import heatmap
from lensplorer.views.base import shorten, view
from lensplorer.views.style import CATEGORIES, THEMES, fill, ink

if TYPE_CHECKING:
    import xarray as xr

_WIDTH = 620
_CURVES = {"probability": "Probability", "logit": "Logit", "correlation": "Probability, of its maximum", "target_rank": "Rank"}
_GRIDS = {"top_probability": "probability", "entropy": "entropy", "kl_to_final": "norm"}
_TITLES = {
    "top_probability": "Logit lens: the likeliest token at each layer",
    "entropy": "Logit lens: entropy (nats)",
    "kl_to_final": "Logit lens: divergence from the model's prediction (nats)",
}
_MOST_LABELS = 800  # cells; beyond that the words would not be legible


@view("logit_lens")
def logit_lens(result: xr.Dataset, *, theme: str = "dark", show: str = "top_probability", position: int = -1) -> Any:
    """The grid, layers up and positions across, with the likeliest token written in each cell; or curves of the tokens followed.

    Args:
        result: of ``logit_lens``.
        theme: ``"dark"`` or ``"light"``.
        show: ``"top_probability"``, ``"entropy"`` or ``"kl_to_final"`` for the grid; with tokens, ``"probability"``, ``"logit"``,
            ``"correlation"`` or ``"target_rank"`` for a curve per token at ``position``.
        position: of the curves.
    """
    available = [name for name in (*_GRIDS, *_CURVES) if name in result]
    if show not in available:
        raise AnalysisError(f"Cannot show {show!r} of this result.{did_you_mean(show, available)}")
    if show in _CURVES:
        return _curves(result, show, position, theme)
    values = np.asarray((result[show].isel(rank=0) if show == "top_probability" else result[show]).values, dtype=float)
    high = 1.0 if show == "top_probability" else None
    grid = heatmap(
        values,
        x="position",
        y="layer",
        value=show,
        title=_TITLES[show],
        theme=theme,
        x_texts=list(result.token.values),
        y_title="layer",
        quantity=_GRIDS[show],
        high=high,
    ).opts(invert_yaxis=False)
    if values.size > _MOST_LABELS:
        return grid
    return grid * _labels(result.top_token.isel(rank=0).values, values, _GRIDS[show], high, theme)


def _labels(texts: np.ndarray, values: np.ndarray, quantity: str, high: float | None, theme: str) -> Any:
    """The likeliest token of each cell, in an ink that can be read on it."""
    import holoviews as hv

    finite = values[np.isfinite(values)]
    top = high if high is not None else float(finite.max(initial=0.0)) or 1.0
    rows = [
        (column, row, shorten(visible(str(texts[row, column])), 8), ink(fill(values[row, column], quantity, high=top, theme=theme)))
        for row in range(values.shape[0])
        for column in range(values.shape[1])
    ]
    return hv.Labels(rows, kdims=["position", "layer"], vdims=["text", "ink"]).opts(text_color="ink", text_font_size="8pt")


def _curves(result: xr.Dataset, show: str, position: int, theme: str) -> Any:
    import holoviews as hv

    n = result.sizes["position"]
    if not -n <= position < n:
        raise AnalysisError(f"Position {position} is outside this result: expected {-n} to {n - 1}.")
    here = result[show].isel(position=position)  # [layer, target]
    curves = []
    for index, text in enumerate(result.target_token.values):
        name = visible(str(text))
        curve = hv.Curve((result["layer"].values, here.values[:, index]), kdims=["layer"], vdims=[show], label=f"{name} ({index})")
        curves.append(curve.opts(color=CATEGORIES[index % len(CATEGORIES)], line_width=2))
    at = position % n
    title = f"{_CURVES[show]} by layer, after {visible(str(result.token.values[at]))}"
    overlay = hv.Overlay(curves).opts(title=title, width=_WIDTH, height=300, show_legend=True, legend_position="top_left")
    return overlay.opts(hv.opts.Curve(bgcolor=THEMES[theme]["card"], ylabel=_CURVES[show].lower(), tools=["hover"]))


@view("contrast")
def contrast(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """The two differences by layer, each about its zero line."""
    import holoviews as hv

    a, b = visible(str(result.attrs["a"])), visible(str(result.attrs["b"]))
    colours = THEMES[theme]
    panels = []
    for name, title in (("logit_difference", "logit"), ("probability_difference", "probability")):
        curve = hv.Curve((result["layer"].values, result[name].values), kdims=["layer"], vdims=[name]).opts(
            color=CATEGORIES[0], line_width=2, tools=["hover"], bgcolor=colours["card"], ylabel=f"{title} difference"
        )
        zero = hv.HLine(0).opts(color=colours["muted"], line_width=1)
        panels.append((zero * curve).opts(title=f"{a} against {b}: {title}", width=_WIDTH // 2, height=260))
    return hv.Layout(panels).cols(2).opts(shared_axes=False)
