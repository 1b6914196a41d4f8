"""Pictures of SAE features: which fire where, the strongest at one position, one feature over the prompt, paths through layers, and splices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError
from lensplorer.tokens import visible
from lensplorer.views.attention import heatmap, token_bars
from lensplorer.views.base import shorten, token_formatter, view
from lensplorer.views.style import CATEGORIES, THEMES, fill, ink

if TYPE_CHECKING:
    import xarray as xr

_WIDTH = 620
_QUANTITY = "norm"
_MOST_LABELS = 600  # cells; beyond that the numbers would not be legible
_LONGEST_LABEL = 44


@view("feature_activations")
def feature_activations(result: xr.Dataset, *, theme: str = "dark", position: int | None = None, feature: int | None = None) -> Any:
    """Ranks down and positions across, the feature's number in each cell; or the bars of one position, or of one feature.

    Args:
        result: of ``feature_activations``.
        theme: ``"dark"`` or ``"light"``.
        position: show the strongest features there, with their labels.
        feature: show this one at each position; 0 where it is not among the strongest.
    """
    if position is not None and feature is not None:
        raise AnalysisError("Give a position or a feature to draw, not both.")
    if position is not None:
        return _at_position(result, position, theme)
    if feature is not None:
        return _of_feature(result, feature, theme)
    values = np.where(result.feature.values >= 0, np.abs(result.activation.values), np.nan).T  # [rank, position]
    grid = heatmap(
        values if np.isfinite(values).any() else np.zeros_like(values),  # a picture of nothing but holes has no range
        x="position",
        y="rank",
        value="activation",
        title=f"Features of {_name(result)} ({_trust(result)})",
        theme=theme,
        x_texts=list(result.token.values),
        y_title="rank",
        y_start=1,
        quantity=_QUANTITY,
    )
    if values.size > _MOST_LABELS:
        return grid
    return grid * _numbers(result.feature.values.T, values, theme)


def _numbers(features: np.ndarray, values: np.ndarray, theme: str) -> Any:
    """Each cell's feature number, in an ink that can be read on it."""
    import holoviews as hv

    top = float(np.nan_to_num(values).max(initial=0.0)) or 1.0
    rows = [
        (position, rank + 1, str(features[rank, position]), ink(fill(values[rank, position], _QUANTITY, high=top, theme=theme)))
        for rank in range(features.shape[0])
        for position in range(features.shape[1])
        if features[rank, position] >= 0
    ]
    return hv.Labels(rows, kdims=["position", "rank"], vdims=["feature", "ink"]).opts(text_color="ink", text_font_size="8pt")


def _at_position(result: xr.Dataset, position: int, theme: str) -> Any:
    """A horizontal bar per feature, strongest on top, its number and label beside it."""
    import holoviews as hv

    n = result.sizes["position"]
    if not -n <= position < n:
        raise AnalysisError(f"Position {position} is outside this result: expected {-n} to {n - 1}.")
    here = result.isel(position=position)
    active = here.feature.values >= 0
    values = here.activation.values[active]
    labels = [str(text) for text in here.label.values[active]] if "label" in result else [""] * len(values)
    # spaces that are no token's are not to be drawn as one
    names = [
        shorten(f"{feature}  {label}".rstrip(), _LONGEST_LABEL).replace(" ", "\N{NO-BREAK SPACE}")
        for feature, label in zip(here.feature.values[active], labels, strict=True)
    ]
    at = np.arange(len(values))
    bars = hv.Rectangles(
        (np.minimum(values, 0), at - 0.4, np.maximum(values, 0), at + 0.4, values, here.feature.values[active], labels),
        kdims=["left", "bottom", "right", "top"],
        vdims=["activation", "feature", "label"],
    )
    where = f"{visible(str(result.token.values[position % n]))} ({position % n})"
    empty = "" if len(values) else ": none, the position is left out" if bool(np.isnan(here.activation.values).all()) else ": none is active"
    return bars.opts(
        color=fill(0.8, _QUANTITY, theme=theme),
        line_color=THEMES[theme]["line"],
        tools=["hover"],
        width=_WIDTH,
        height=int(np.clip(90 + 22 * len(values), 160, 620)),
        title=f"Features at {where}{empty}",
        xlabel="activation",
        ylabel="",
        ylim=(max(len(values), 1) - 0.4, -0.6),
        yticks=list(range(max(len(values), 1))),
        yformatter=token_formatter(names, longest=_LONGEST_LABEL),
        bgcolor=THEMES[theme]["card"],
    )


def _of_feature(result: xr.Dataset, feature: int, theme: str) -> Any:
    found = result.feature.values == feature
    values = np.where(found, np.nan_to_num(result.activation.values), 0).sum(1)
    title = f"Feature {feature} of {_name(result)}, where it is among the {result.sizes['rank']} strongest"
    texts = list(result.token.values)
    return token_bars(values, texts, dimension="position", value="activation", title=title, quantity=_QUANTITY, theme=theme)


@view("cross_layer_features")
def cross_layer_features(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Layers across, ranks down, a point per feature; a line joins a feature to the one that continues it in the next layer."""
    import holoviews as hv

    colours = THEMES[theme]
    layers = [int(layer) for layer in result["layer"].values]
    feature, path, successor = result.feature.values, result.path.values, result.successor.values
    lengths = np.bincount(path[path >= 0], minlength=1)
    followed = [number for number in range(len(lengths)) if lengths[number] > 1]
    colour_of = {number: CATEGORIES[order % len(CATEGORIES)] for order, number in enumerate(followed)}
    shown = [(layer, rank) for layer, rank in np.ndindex(feature.shape) if feature[layer, rank] >= 0]
    points = [
        (
            layer,
            rank + 1,
            int(feature[layer, rank]),
            float(result.activation.values[layer, rank]),
            colour_of.get(int(path[layer, rank]), colours["muted"]),
        )
        for layer, rank in shown
    ]
    links = [
        (layer, rank + 1, layer + 1, int(successor[layer, rank]), float(result.similarity.values[layer, rank, successor[layer, rank] - 1]), point[4])
        for (layer, rank), point in zip(shown, points, strict=True)
        if successor[layer, rank] > 0
    ]
    lines = hv.Segments(links, kdims=["layer", "rank", "next layer", "next rank"], vdims=["similarity", "colour"])
    dots = hv.Points(points, kdims=["layer", "rank"], vdims=["feature", "activation", "colour"])
    labels = hv.Labels([(layer, rank, str(number)) for layer, rank, number, *_ in points], kdims=["layer", "rank"], vdims=["text"])
    at = f"{visible(str(result.attrs['position_token']))} ({result.attrs['position']})"
    return (
        lines.opts(color="colour", line_width=2, tools=["hover"])
        * dots.opts(color="colour", size=11, line_color=colours["line"], tools=["hover"])
        * labels.opts(text_color=colours["text"], text_font_size="8pt", text_align="left", xoffset=0.05)
    ).opts(
        hv.opts.Overlay(title=f"Features through the layers at {at}", width=_WIDTH, height=int(np.clip(110 + 24 * feature.shape[1], 220, 620))),
        hv.opts.Points(
            bgcolor=colours["card"],
            xlim=(-0.3, len(layers) - 0.4),
            ylim=(feature.shape[1] + 0.6, 0.4),
            xticks=[(index, f"block {layer}") for index, layer in enumerate(layers)],
            xlabel="",
            ylabel="rank",
        ),
    )


@view("splice_fidelity")
def splice_fidelity(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """What the splice costs at each token: its loss less the clean one, and the loss recovered in the title."""
    cost = (result.loss_spliced - result.loss_clean).values
    recovered = float(result.attrs["loss_recovered"])
    share = f"{recovered:.1%} of the loss recovered" if np.isfinite(recovered) else "no loss to recover"
    title = f"Loss added by {_name(result)} in place of {result.attrs['hook_out'] or result.attrs['hook']} ({share})"
    texts = list(result.token.values)
    return token_bars(np.nan_to_num(cost), texts, dimension="position", value="added loss, nats", title=title, quantity="signed", theme=theme)


def _name(result: xr.Dataset) -> str:
    return shorten(str(result.attrs["sae"]), 48)


def _trust(result: xr.Dataset) -> str:
    """The figures of the trust badge: explained variance and L0."""
    variance = float(result.attrs["explained_variance"])
    explained = f"{variance:.1%} of the variance" if np.isfinite(variance) else "variance not defined"
    return f"{explained}, {float(result.attrs['l0']):.1f} active per token"


__all__ = ["cross_layer_features", "feature_activations", "splice_fidelity"]
