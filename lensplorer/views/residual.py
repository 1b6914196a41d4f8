"""Pictures of the residual stream: norms, similarities, and who wrote how much of a logit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError
from lensplorer.tokens import visible
from lensplorer.views.attention import heatmap, token_bars
from lensplorer.views.base import token_formatter, view

if TYPE_CHECKING:
    import xarray as xr

_MOST_ROWS = 16  # heads shown by source token, and neurons shown: those that contribute most


@view("residual_norms")
def residual_norms(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Layers up, positions across."""
    return _stream(result, "norm", "Residual stream: norm", "norm", theme)


@view("hidden_similarity")
def hidden_similarity(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Layers up, positions across."""
    return _stream(result, "cosine", "Cosine with the final layer", "signed", theme, high=1.0)


@view("token_similarity")
def token_similarity(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A bar per token."""
    texts = list(result.token.values)
    title = f"Cosine with {visible(str(texts[result.attrs['position']]))} ({result.attrs['position']})"
    return token_bars(result.cosine.values, texts, dimension="position", value="cosine", title=title, quantity="signed", theme=theme)


@view("residual_decomposition")
def residual_decomposition(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Signed contributions: a bar per component or neuron, a cell per head, or the strongest heads by source token."""
    values = result.contribution.values
    return _unit(result)(result, values, values, f"direct contributions to {_target(result)}", theme)


@view("component_attribution")
def component_attribution(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Total contributions, and below them the direct ones, each drawn as a decomposition is. Summed over the positions where a part wrote."""
    import holoviews as hv

    values = {kind: (result[kind].sum("position") if "position" in result[kind].dims else result[kind]).values for kind in ("total", "direct")}
    about = str(result.attrs["target"])
    pictures = [_unit(result)(result, each, values["total"], f"{kind} contributions to the {about}", theme) for kind, each in values.items()]
    return hv.Layout(pictures).cols(1).opts(shared_axes=False)


def _unit(result: xr.Dataset) -> Callable[..., Any]:
    """How its unit is drawn: (result, values, those that say which are strongest, title, theme) → element."""
    draw_unit = {"layer": _by_component, "head": _by_head, "neuron": _by_neuron, "source": _by_source}
    unit = result.attrs.get("unit", "")
    if unit not in draw_unit:
        raise AnalysisError(f"This decomposition has no unit that can be drawn: {unit!r}, expected one of {', '.join(draw_unit)}.")
    return draw_unit[unit]


def _by_component(result: xr.Dataset, values: np.ndarray, _: np.ndarray, title: str, theme: str) -> Any:
    return _signed_bars(values, [str(name) for name in result.component.values], "component", title[:1].upper() + title[1:], theme)


def _by_neuron(result: xr.Dataset, values: np.ndarray, strength: np.ndarray, title: str, theme: str) -> Any:
    order = np.argsort(-np.abs(strength))[:_MOST_ROWS]
    return _signed_bars(values[order], [str(index) for index in order], "neuron", f"Neurons of block {result.attrs['layer']}: {title}", theme)


def _by_head(result: xr.Dataset, values: np.ndarray, _: np.ndarray, title: str, theme: str) -> Any:
    title = f"Heads: {title}"
    return heatmap(values, x="head", y="layer", value="contribution", title=title, theme=theme, y_title="block", quantity="signed")


def _by_source(result: xr.Dataset, values: np.ndarray, strength: np.ndarray, title: str, theme: str) -> Any:
    n_heads = values.shape[1]  # [layer, head, source]
    order = np.argsort(-np.abs(strength.sum(-1)), axis=None)[:_MOST_ROWS]
    grid = heatmap(
        values.reshape(-1, values.shape[2])[order],
        x="source",
        y="head",
        value="contribution",
        title=f"By the token read: {title}",
        theme=theme,
        x_texts=list(result.source_token.values),
        quantity="signed",
    )
    return grid.opts(yformatter=token_formatter([f"{index // n_heads}.{index % n_heads}" for index in order]), ylabel="block.head")


def _stream(result: xr.Dataset, name: str, title: str, quantity: str, theme: str, high: float | None = None) -> Any:
    grid = heatmap(
        result[name].values,
        x="position",
        y="layer",
        value=name,
        title=title,
        theme=theme,
        x_texts=list(result.token.values),
        y_title="layer",
        quantity=quantity,
        high=high,
    )
    return grid.opts(invert_yaxis=False)


def _signed_bars(values: np.ndarray, names: list[str], dimension: str, title: str, theme: str) -> Any:
    return token_bars(values, names, dimension=dimension, value="contribution", title=title, quantity="signed", theme=theme)


def _target(result: xr.Dataset) -> str:
    target, versus = str(result.attrs["target"]), str(result.attrs["versus"])
    if target == "direction":
        return "a direction"
    return visible(target) + (f" against {visible(versus)}" if versus else "")
