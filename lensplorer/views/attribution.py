"""Pictures of attribution: a bar per token, a matrix of generated × source tokens, deletion and insertion curves, agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.views.attention import heatmap, token_bars
from lensplorer.views.base import view
from lensplorer.views.style import CATEGORIES, THEMES

if TYPE_CHECKING:
    import xarray as xr


def _title(result: xr.Dataset) -> str:
    method = str(result.attrs["method"]).replace("_", " ")
    if "completeness" in result.attrs:
        method += f", off by {100 * float(result.attrs['completeness']):.2g} %"
    if "note" in result.attrs:
        method += ", not converged"
    return method


@view("attribute")
def attribute(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A bar per token; blue speaks for the target, red against it."""
    from lensplorer.tokens import visible

    target = visible(str(result.attrs["target"]))
    if "versus" in result.attrs:
        target += f" over {visible(str(result.attrs['versus']))}"
    return token_bars(
        result.attribution.values,
        list(result.token.values),
        dimension="position",
        value="attribution",
        title=f"What speaks for {target} ({_title(result)})",
        quantity="signed" if result.attrs["signed"] else "attention",
        theme=theme,
    )


@view("attribution_matrix")
def attribution_matrix(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Generated tokens down, sources across."""
    texts = list(result.source_token.values)
    return heatmap(
        result.attribution.values,
        x="source",
        y="generated",
        value="attribution",
        title=f"Attribution of each generated token ({_title(result)})",
        theme=theme,
        x_texts=texts,
        y_texts=texts,  # the rows count positions of the same text
        y_start=int(result.generated.values[0]),
        quantity="signed" if result.attrs["signed"] else "attention",
    )


@view("faithfulness_curves")
def faithfulness_curves(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """F while the top tokens are removed and put back, and the mean of random orders, dashed."""
    import holoviews as hv

    curves = []
    for colour, name in zip(CATEGORIES, ("deletion", "insertion")):
        for key, dash in ((name, "solid"), (f"random_{name}", "dashed")):
            values = result[key].values
            if np.isfinite(values).all():
                curve = hv.Curve((result.step.values, values), kdims=["step"], vdims=["value"], label=key.replace("_", " "))
                curves.append(curve.opts(color=colour, line_dash=dash, line_width=2, tools=["hover"]))
    return hv.Overlay(curves).opts(
        width=620,
        height=320,
        title=f"Deletion and insertion ({str(result.attrs['method']).replace('_', ' ')})",
        xlabel="tokens",
        ylabel=str(result.attrs["objective"]).replace("_", " "),
        legend_position="right",
        bgcolor=THEMES[theme]["card"],
    )


@view("attribution_agreement")
def attribution_agreement(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """Methods × methods: rank correlation and overlap of the top tokens."""
    import holoviews as hv

    names = [str(name).replace("_", " ") for name in result.attribution.values]
    ticks = list(enumerate(names))
    grids = []
    for key, title, quantity in (
        ("rank_correlation", "Rank correlation", "signed"),
        ("top_k_overlap", f"Common of the top {result.attrs['top_k']}", "attention"),
    ):
        grid = heatmap(result[key].values, x="other", y="attribution", value=key, title=title, theme=theme, quantity=quantity, high=1.0, width=420)
        grids.append(grid.opts(xticks=ticks, yticks=ticks, xrotation=60, xlabel=""))
    return hv.Layout(grids).cols(2).opts(shared_axes=False)
