"""Pictures of attention: heatmaps over tokens, heads side by side, clusters of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError
from lensplorer.tokens import visible
from lensplorer.views.base import token_formatter, view
from lensplorer.views.style import CATEGORIES, THEMES, colormap

if TYPE_CHECKING:
    import xarray as xr

_WIDTH = 620
_MOST_TERMS = 16  # of a query and of a key, those that weigh most
_ROW = 14  # pixels of a heatmap row, as far as the heights below allow


@view("attention_patterns")
def attention_patterns(result: xr.Dataset, *, theme: str = "dark", layer: int = 0, head: int | None = None) -> Any:
    """One head's pattern, queries down and sources across; the mean over a layer's heads when ``head`` is None."""
    weights = result.weight.values
    _within("layer", layer, weights.shape[0])
    if head is not None:
        _within("head", head, weights.shape[1])
    pattern = weights[layer].mean(0) if head is None else weights[layer, head]
    title = f"Attention, layer {layer}, " + ("mean over heads" if head is None else f"head {head}")
    texts = list(result.query_token.values)
    return heatmap(
        pattern, x="source", y="query", value="weight", title=title, theme=theme, x_texts=list(result.source_token.values), y_texts=texts, high=1.0
    )


@view("attention_rollout")
def attention_rollout(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Rollout, queries down and sources across."""
    x_texts, y_texts = list(result.source_token.values), list(result.query_token.values)
    return heatmap(
        result.weight.values, x="source", y="query", value="weight", title="Attention rollout", theme=theme, x_texts=x_texts, y_texts=y_texts
    )


@view("attention_by_layer")
def attention_by_layer(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Mean attention, layers down and sources across."""
    title = f"Attention by layer, from position {result.attrs['position']}"
    return heatmap(
        result.weight.values,
        x="source",
        y="layer",
        value="weight",
        title=title,
        theme=theme,
        x_texts=list(result.source_token.values),
        y_title="layer",
    )


@view("attention_influence")
def attention_influence(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A bar per token."""
    weighted = ", weighted by values" if result.attrs["value_weighted"] else ""
    return token_bars(
        result.influence.values,
        list(result.source_token.values),
        dimension="source",
        value="influence",
        title=f"Influence, {result.attrs['top_heads']} heads{weighted}",
        quantity="attention",
        theme=theme,
    )


@view("qk_attribution")
def qk_attribution(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """The strongest pairs of terms as a grid, query terms down and key terms across, and the sums of its rows and columns over all terms."""
    import holoviews as hv

    about = result.attrs
    varies = "difference" if np.isfinite(result.difference.values).all() else "contribution"  # a query with one source has no others
    strongest = {}
    for side in ("query", "key"):
        values = result[f"{side}_{varies}"].values
        strongest[side] = np.sort(np.argsort(-np.abs(values))[:_MOST_TERMS])
    rows, columns = ([str(name) for name in result[f"{side}_term"].values[strongest[side]]] for side in ("query", "key"))
    how = ("more ", " than to the others") if varies == "difference" else ("", "")
    grid = heatmap(
        result[varies].values[np.ix_(strongest["query"], strongest["key"])],
        x="key_term",
        y="query_term",
        value=varies,
        title=f"Why head {about['layer']}.{about['head']} attends {how[0]}from {about['query_position']} to {about['source_position']}{how[1]}",
        theme=theme,
        x_texts=columns,
        y_texts=rows,
        quantity="signed",
    )
    bars = [
        token_bars(
            result[f"{side}_{varies}"].values[strongest[side]],
            names,
            dimension=f"{side}_term",
            value=varies,
            title=f"Terms of the {side}",
            quantity="signed",
            theme=theme,
        )
        for side, names in (("query", rows), ("key", columns))
    ]
    return hv.Layout([grid, *bars]).cols(1).opts(shared_axes=False)


@view("head_statistics", "head_scores")
def head_grid(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Layers × heads, one grid per statistic, side by side."""
    import holoviews as hv

    titles = {name: str(name).replace("_", " ") for name in result.data_vars}
    grids = [
        heatmap(result[name].values, x="head", y="layer", value=str(name), title=title, theme=theme, y_title="layer", width=300)
        for name, title in titles.items()
    ]
    return hv.Layout(grids).cols(len(grids)).opts(shared_axes=False)


@view("head_clusters")
def head_clusters(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """The map of heads by cluster, and each cluster's mean pattern row below it."""
    import holoviews as hv

    colours = THEMES[theme]
    cluster = result.cluster.values
    names = [f"{layer}.{head}" for layer, head in zip(result["layer"].values, result["head"].values)]
    points = hv.Points((result.x.values, result.y.values, cluster, names), kdims=["x", "y"], vdims=["cluster", "head"]).opts(
        color="cluster",
        cmap=[CATEGORIES[index % len(CATEGORIES)] for index in range(int(result.attrs["n_clusters"]))],
        clim=(-0.5, int(result.attrs["n_clusters"]) - 0.5),
        size=9,
        line_color=colours["line"],
        tools=["hover"],
        width=_WIDTH,
        height=320,
        title=f"Heads by what position {result.attrs['position']} reads ({result.attrs['projection']})",
        bgcolor=colours["card"],
    )
    rows = heatmap(
        result.mean_pattern.values,
        x="source",
        y="cluster",
        value="mean_pattern",
        title="Mean pattern of each cluster",
        theme=theme,
        x_texts=list(result.source_token.values),
        y_title="cluster",
    )
    return hv.Layout([points, rows]).cols(1).opts(shared_axes=False)


# -- what attribution draws too --------------------------------------------------------------------------------------------------------


def heatmap(
    values: np.ndarray,
    *,
    x: str,
    y: str,
    value: str,
    title: str,
    theme: str,
    x_texts: list[str] | None = None,
    y_texts: list[str] | None = None,
    y_title: str = "",
    x_start: int = 0,
    y_start: int = 0,
    quantity: str = "attention",
    high: float | None = None,
    width: int = _WIDTH,
) -> Any:
    """An image with one cell per integer (column, row), the first row on top, and token text on the axes that have one."""
    import holoviews as hv

    rows, columns = values.shape
    bounds = (x_start - 0.5, y_start - 0.5, x_start + columns - 0.5, y_start + rows - 0.5)
    largest = high if high is not None else _largest(values)
    # Image puts its first row at the top of the bounds; the axis is inverted instead, so that y counts down.
    image = hv.Image(values[::-1].astype(np.float32), kdims=[x, y], vdims=[value], bounds=bounds)
    options: dict[str, Any] = {"xformatter": token_formatter(x_texts), "xrotation": 60} if x_texts else {}
    if y_texts:
        options["yformatter"] = token_formatter(y_texts)
    return image.opts(
        cmap=colormap(quantity, theme),
        clim=(-largest if quantity == "signed" else 0.0, largest),
        colorbar=True,
        tools=["hover"],
        invert_yaxis=True,
        width=width,
        height=int(np.clip(110 + _ROW * rows, 200, 620)),
        title=title,
        xlabel="" if x_texts else x,
        ylabel=y_title,
        bgcolor=THEMES[theme]["card"],
        **options,
    )


def token_bars(values: np.ndarray, texts: list[str], *, dimension: str, value: str, title: str, quantity: str, theme: str) -> Any:
    """A bar per token on an integer axis, coloured by value."""
    import holoviews as hv

    n = len(values)
    largest = _largest(values)
    at = np.arange(n)
    tokens = [visible(text) for text in texts]
    low, high = np.minimum(values, 0), np.maximum(values, 0)
    bars = hv.Rectangles(
        (at - 0.45, low, at + 0.45, high, values, at, tokens), kdims=["left", "bottom", "right", "top"], vdims=[value, dimension, "token"]
    )
    return bars.opts(
        color=value,
        cmap=colormap(quantity, theme),
        clim=(-largest if quantity == "signed" else 0.0, largest),
        line_color=THEMES[theme]["line"],
        tools=["hover"],
        width=_WIDTH,
        height=260,
        title=title,
        xlabel="",
        ylabel=value,
        xlim=(-0.6, n - 0.4),
        xformatter=token_formatter(texts),
        xrotation=60,
        bgcolor=THEMES[theme]["card"],
    )


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def _within(name: str, value: int, size: int) -> None:
    if not 0 <= value < size:
        raise AnalysisError(f"{name} {value} is not in this result: expected 0 to {size - 1}.")
