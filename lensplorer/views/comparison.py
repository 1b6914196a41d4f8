"""Pictures of two runs: how far they predict alike, what changed, and the same view of both side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.views.attention import heatmap, token_bars
from lensplorer.views.base import draw, token_formatter, view
from lensplorer.views.style import CATEGORIES, THEMES

if TYPE_CHECKING:
    import xarray as xr

_TOKEN_OF = {"position": "token", "source": "source_token", "query": "query_token"}


@view("compare")
def compare(result: xr.Dataset, *, theme: str = "dark", measure: str = "kl") -> Any:
    """Divergence of the two predictions after each token, and below it both sides' timelines of surprisal.

    Args:
        measure: ``"kl"`` or ``"js"``.
    """
    import holoviews as hv

    if measure not in ("kl", "js"):
        raise AnalysisError(f"Unknown measure {measure!r}.{did_you_mean(measure, ('kl', 'js'))}")
    texts = [str(text) for text in result.token.values]
    agree = int(result.top1_agree.values.sum())
    title = f"{'KL' if measure == 'kl' else 'Jensen-Shannon'} divergence (nats), same first choice at {agree} of {len(texts)}"
    bars = token_bars(result[measure].values, texts, dimension="position", value=measure, title=title, quantity="entropy", theme=theme)
    return hv.Layout([bars, timelines(result, theme=theme)]).cols(1).opts(shared_axes=False)


def timelines(result: xr.Dataset, *, score: str = "surprisal", theme: str = "dark") -> Any:
    """Both sides' ``score`` (surprisal, probability, entropy or rank) of each token, in one plot."""
    import holoviews as hv

    at = np.arange(result.sizes["position"])
    curves = []
    for side, colour, dash in (("a", CATEGORIES[0], "solid"), ("b", CATEGORIES[1], "dashed")):
        name = str(result.attrs[f"model_{side}"])
        label = f"{side}: {name}" + (" (changed)" if result.attrs["interventions" if side == "a" else "interventions_b"] else "")
        curve = hv.Curve((at, result[f"{score}_{side}"].values), kdims=["position"], vdims=[score], label=label)
        curves.append(curve.opts(color=colour, line_dash=dash, line_width=2, tools=["hover"]))
    units = result[f"{score}_a"].attrs.get("units", "")
    return hv.Overlay(curves).opts(
        width=620,
        height=260,
        title=f"{score.capitalize()}{f' ({units})' if units else ''} on both sides",
        xlabel="",
        xformatter=token_formatter([str(text) for text in result.token.values]),
        xrotation=60,
        legend_position="top_left",
        bgcolor=THEMES[theme]["card"],
    )


@view("next_token_change")
def next_token_change(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A row per candidate: the plain probability as a ring, the changed one as a disc, and the way between them."""
    import holoviews as hv

    from lensplorer.tokens import visible

    rows = np.arange(result.sizes["candidate"])
    before, after = result.probability_a.values, result.probability_b.values
    tokens = [visible(str(text)) for text in result.token.values]
    way = hv.Segments((before, rows, after, rows), kdims=["from", "row", "to", "row_too"]).opts(color=THEMES[theme]["muted"], line_width=2)
    rings = hv.Points((before, rows, tokens), kdims=["probability", "row"], vdims=["token"], label="plain")
    discs = hv.Points((after, rows, tokens), kdims=["probability", "row"], vdims=["token"], label="changed")
    marks = {"size": 9, "line_color": CATEGORIES[0], "tools": ["hover"]}
    return (way * rings.opts(color=THEMES[theme]["card"], **marks) * discs.opts(color=CATEGORIES[0], **marks)).opts(
        width=460,
        height=int(np.clip(100 + 22 * len(rows), 200, 620)),
        title=f"Next token, plain and changed (KL {float(result.attrs['kl']):.3g} nats)",
        xlabel="probability",
        ylabel="",
        invert_yaxis=True,
        yticks=[(int(row), token) for row, token in zip(rows, tokens)],
        legend_position="bottom_right",
        bgcolor=THEMES[theme]["card"],
    )


@view("difference")
def difference(result: xr.Dataset, *, theme: str = "dark", variable: str | None = None, **at: int) -> Any:
    """Second minus first: bars for one dimension, a heatmap for two. Of more, the leading ones are fixed (``layer=2``), or averaged.

    Args:
        variable: which quantity; None: the first.
        at: values of the leading dimensions.
    """
    names = [str(name) for name in result.data_vars]
    name = names[0] if variable is None else variable
    if name not in names:
        raise AnalysisError(f"The difference has no {name!r}.{did_you_mean(name, names)}")
    values = result[name]
    unknown = set(at) - set(map(str, values.dims))
    if unknown:
        raise AnalysisError(f"{name!r} has no dimension {unknown.pop()!r}: expected {', '.join(map(str, values.dims))}.")
    values = values.isel(at)
    while values.ndim > 2:
        values = values.mean(str(values.dims[0]))
    title = f"Change of {name.replace('_', ' ')} ({str(result.attrs['of']).replace('_', ' ')})"
    texts = {str(dim): _texts(result, str(dim)) for dim in values.dims}
    if values.ndim == 1:
        dim = str(values.dims[0])
        return token_bars(
            values.values, texts[dim] or [str(v) for v in values[dim].values], dimension=dim, value=name, title=title, quantity="signed", theme=theme
        )
    y, x = map(str, values.dims)
    return heatmap(
        values.values,
        x=x,
        y=y,
        value=name,
        title=title,
        theme=theme,
        x_texts=texts[x],
        y_texts=texts[y],
        y_title="" if texts[y] else y,
        quantity="signed",
    )


def _texts(result: xr.Dataset, dim: str) -> list[str] | None:
    coordinate = _TOKEN_OF.get(dim, "")
    return [str(text) for text in result[coordinate].values] if coordinate in result.coords else None


def side_by_side(result_a: xr.Dataset, result_b: xr.Dataset, change: xr.Dataset | None = None, *, theme: str = "dark", **options: Any) -> Any:
    """The view of an analysis for both runs, and of what changed: timelines, attention heatmaps, clusters, grids.

    Args:
        result_a, result_b: results of one analysis.
        change: ``difference(result_a, result_b)``, drawn between them if given.
        theme: ``"dark"`` or ``"light"``.
        options: of the analysis' view.

    Raises:
        AnalysisError: they are of different analyses, or that analysis has no view.
    """
    import holoviews as hv

    one, other = (result.attrs.get("analysis", "") for result in (result_a, result_b))
    if one != other:
        raise AnalysisError(f"Side by side stand two results of one analysis, got {one!r} and {other!r}.")
    pictures = [
        draw(result_a, theme=theme, **options),
        *([draw(change, theme=theme)] if change is not None else []),
        draw(result_b, theme=theme, **options),
    ]
    flat = [part for picture in pictures for part in (picture if isinstance(picture, hv.Layout) else [picture])]
    return hv.Layout(flat).cols(len(pictures)).opts(shared_axes=False)
