"""The notebooks' still pictures, which show on any page without running: matplotlib, in the colours of `lensplorer.views.style`.

In a live notebook `lp.visualize(result)` gives the interactive figure of the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from lensplorer.tokens import visible
from lensplorer.views.style import CATEGORIES, THEMES, colormap, fill, ink

INK, MUTED, LINE = (THEMES["light"][name] for name in ("text", "muted", "line"))
WIDTH = 9.0  # inches
plt.rcParams.update(
    {"figure.dpi": 90, "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "text.color": INK, "axes.labelcolor": INK}
    | {"axes.edgecolor": LINE, "xtick.color": MUTED, "ytick.color": MUTED, "axes.prop_cycle": plt.cycler(color=[*CATEGORIES[:6], *CATEGORIES[7:]])}
)


def labels(tokens: Sequence[Any]) -> list[str]:
    """Tokens as they can be seen, in signs that the font has: a space before or alone is ·, a line break ⏎."""
    shown = (visible(str(token)) for token in getattr(tokens, "values", tokens))
    return [text.replace("␠", "·", 1).replace("␠", " ") if text.startswith("␠") else text.replace("␠", " ") for text in shown]


def strip(tokens: Sequence[Any], values: Sequence[float], title: str, *, quantity: str = "probability", low: float = 0.0, high: float = 1.0) -> None:
    """A text, each token on the colour of its value; a token without one stays white."""
    across, shown = 100, labels(tokens)
    places, row, column = [], 0, 0.0
    for text in shown:
        if column and column + len(text) + 0.8 > across:
            row, column = row + 1, 0.0
        places.append((column, row))
        column += len(text) + 0.8
        if text.endswith("⏎"):
            row, column = row + 1, 0.0
    rows = max(y for _, y in places) + 1
    figure, (axes, beside) = plt.subplots(
        1,
        2,
        figsize=(WIDTH, 0.26 * rows + 0.4),
        width_ratios=(40, 1),
        gridspec_kw={"left": 0, "right": 0.96, "top": 1 - 0.3 / (0.26 * rows + 0.4), "bottom": 0.02, "wspace": 0.02},
    )
    for text, value, (x, y) in zip(shown, values, places):
        colour = fill(float(value), quantity, low=low, high=high, theme="light") if np.isfinite(value) else "#ffffff"
        axes.add_patch(plt.Rectangle((x, -y - 0.42), len(text) + 0.6, 0.84, color=colour, linewidth=0))
        axes.text(x + 0.3 + len(text) / 2, -y, text, family="monospace", fontsize=8, ha="center", va="center", color=ink(colour))
    axes.set(xlim=(0, across), ylim=(0.5 - rows, 0.5), title=title)
    scale = plt.cm.ScalarMappable(plt.Normalize(low, high), ListedColormap(colormap(quantity, "light")))
    figure.colorbar(scale, cax=beside, ticks=[low, high])
    axes.axis("off")
    plt.show()


def columns(values: Sequence[float], names: Sequence[Any], title: str, *, unit: str, height: float = 2.2) -> None:
    """A bar per token or component."""
    figure, axes = plt.subplots(figsize=(WIDTH, height))
    at, values = np.arange(len(names)), np.asarray(values, dtype=float)
    axes.bar(at, np.nan_to_num(values), color=[CATEGORIES[0] if value >= 0 else CATEGORIES[4] for value in np.nan_to_num(values)])
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_xticks(at, labels(names), rotation=55, ha="right", rotation_mode="anchor", family="monospace", fontsize=8)
    axes.set(title=title, ylabel=unit, xlim=(-0.6, len(names) - 0.4))
    figure.tight_layout()
    plt.show()


def heat(
    values: Any,
    rows: Sequence[Any],
    across: Sequence[Any],
    title: str,
    *,
    quantity: str,
    row: str = "layer",
    low: float | None = None,
    high: float | None = None,
    texts: Any = None,
    width: float = WIDTH,
) -> None:
    """A grid of colours, the first row below; `texts` stand in the cells. Signed scales are symmetric about zero."""
    values = np.asarray(values, dtype=float)
    most = float(np.nanmax(np.abs(values))) or 1.0
    low = (-most if quantity == "signed" else 0.0) if low is None else low
    high = most if high is None else high
    figure, axes = plt.subplots(figsize=(width, 0.3 * len(rows) + 1.3))
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=ListedColormap(colormap(quantity, "light")), vmin=low, vmax=high)
    axes.set_xticks(range(len(across)), labels(across), rotation=55, ha="right", rotation_mode="anchor", family="monospace", fontsize=8)
    axes.set_yticks(range(len(rows)), labels(rows))
    axes.set(title=title, ylabel=row)
    if texts is not None:
        for y, x in np.ndindex(*values.shape):
            colour = fill(values[y, x], quantity, low=low, high=high, theme="light")
            axes.text(x, y, labels([texts[y][x]])[0], ha="center", va="center", fontsize=7, family="monospace", color=ink(colour), clip_on=True)
    figure.colorbar(image, ax=axes, pad=0.01)
    figure.tight_layout()
    plt.show()


def lines(x: Sequence[Any], series: Mapping[str, Any], title: str, *, x_title: str, unit: str, height: float = 2.6) -> None:
    """A line per series, joined over what it has no value of; a series of chance is dashed."""
    figure, axes = plt.subplots(figsize=(WIDTH, height))
    for name, label in zip(series, labels(list(series))):
        values = np.asarray(series[name], dtype=float)
        has = np.flatnonzero(np.isfinite(values))
        chance = {"color": MUTED, "linestyle": "--"} if "random" in name else {}
        axes.plot(has, values[has], label=label, marker="o", markersize=3, **chance)
    axes.set_xticks(range(len(x)), labels(x))
    axes.set(title=title, xlabel=x_title, ylabel=unit)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    plt.show()
