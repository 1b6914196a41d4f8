"""Pictures of the residual stream: norms, similarities, and who wrote how much of a logit."""

from __future__ import annotations

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
    draw_unit = {"layer": _by_component, "head": _by_head, "neuron": _by_neuron, "source": _by_source}
    unit = result.attrs.get("unit", "")
    if unit not in draw_unit:
        raise AnalysisError(f"This decomposition has no unit that can be drawn: {unit!r}, expected one of {', '.join(draw_unit)}.")
    return draw_unit[unit](result, theme)


def _by_component(result: xr.Dataset, theme: str) -> Any:
    names = [str(name) for name in result.component.values]
    return _signed_bars(result.contribution.values, names, "component", f"Direct contributions to {_target(result)}", theme)


def _by_neuron(result: xr.Dataset, theme: str) -> Any:
    values = result.contribution.values
    order = np.argsort(-np.abs(values))[:_MOST_ROWS]
    title = f"Neurons of block {result.attrs['layer']}: contributions to {_target(result)}"
    return _signed_bars(values[order], [str(index) for index in order], "neuron", title, theme)


def _by_head(result: xr.Dataset, theme: str) -> Any:
    return heatmap(
        result.contribution.values,
        x="head",
        y="layer",
        value="contribution",
        title=f"Heads: contributions to {_target(result)}",
        theme=theme,
        y_title="block",
        quantity="signed",
    )


def _by_source(result: xr.Dataset, theme: str) -> Any:
    values = result.contribution.values  # [layer, head, source]
    n_heads = values.shape[1]
    flat = values.reshape(-1, values.shape[2])
    order = np.argsort(-np.abs(flat.sum(1)))[:_MOST_ROWS]
    grid = heatmap(
        flat[order],
        x="source",
        y="head",
        value="contribution",
        title=f"Which token each head read for {_target(result)}",
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
