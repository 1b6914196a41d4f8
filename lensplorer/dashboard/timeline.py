"""The main panel: the view's value of each token as bars in the strip's colours, over the token axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import panel as pn
from bokeh.models import BoxAnnotation, ColumnDataSource, CustomJSTickFormatter, FixedTicker, HoverTool, Range1d, Span
from bokeh.plotting import figure

from lensplorer.views.base import shorten
from lensplorer.views.style import THEMES, fill

_MOST_LABELS = 72
_FEWEST = 24  #: positions that the axis has room for at least: a short prompt keeps narrow bars
_LEFT, _RIGHT, _BOTTOM = 56, 16, 76  # fixed borders: plots that share the token axis align to the pixel


class Timeline:
    """A Bokeh figure that is changed in place; ``pane`` goes on the page."""

    def __init__(self, theme: str = "dark") -> None:
        self.source = ColumnDataSource({"x": [], "top": [], "bottom": [], "colour": [], "token": [], "shown": []})
        self.formatter = CustomJSTickFormatter(args={"labels": []}, code="return labels[tick] === undefined ? '' : labels[tick]")
        self.ticker = FixedTicker(ticks=[])
        self.figure = figure(
            x_range=Range1d(-0.5, 0.5),
            y_range=Range1d(0, 1),
            sizing_mode="stretch_both",
            min_height=160,
            toolbar_location=None,
            tools="",
            min_border_left=_LEFT,
            min_border_right=_RIGHT,
            min_border_bottom=_BOTTOM,
            min_border_top=8,
            background_fill_alpha=0,  # the card shows through, whatever theme the page puts on
            border_fill_alpha=0,
        )
        self.bars = self.figure.vbar(x="x", top="top", bottom="bottom", width=0.86, fill_color="colour", line_color=None, source=self.source)
        self.figure.add_tools(HoverTool(renderers=[self.bars], mode="vline", tooltips=[("token", "@token"), ("position", "@x"), ("value", "@shown")]))
        self.cursor = BoxAnnotation(left=-0.5, right=0.5, fill_alpha=0.07, line_alpha=0.7, level="underlay")
        self.zero = Span(dimension="width", location=0, line_width=1)
        self.figure.add_layout(self.cursor)
        self.figure.add_layout(self.zero)
        axis = self.figure.xaxis[0]
        axis.ticker, axis.formatter, axis.major_label_orientation = self.ticker, self.formatter, 1.0
        self.figure.xgrid.grid_line_color = None
        for each in self.figure.axis:
            each.axis_line_color = None
            each.major_tick_line_color = each.minor_tick_line_color = None
            each.major_label_text_font_size = "12px"
        axis.major_label_text_font = "monospace"
        self.figure.yaxis[0].ticker.desired_num_ticks = 5
        self.theme = ""
        self.set_theme(theme)
        self.pane = pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", min_height=160)

    def set_theme(self, theme: str) -> None:
        """Recolour the figure for ``"dark"`` or ``"light"``."""
        if theme == self.theme:
            return
        self.theme = theme
        colours = THEMES[theme]
        self.figure.outline_line_color = None
        self.figure.ygrid.grid_line_color = colours["line"]
        self.zero.line_color = colours["muted"]
        self.cursor.fill_color = self.cursor.line_color = colours["accent"]
        for axis in self.figure.axis:
            axis.major_label_text_color = colours["muted"]
        self._paint()

    def update(self, strip: dict[str, Any], cursor: int | None) -> None:
        """Draw the strip's values; nothing where the strip has none."""
        self.strip = strip
        values = strip.get("values")
        if not values:
            return
        n = len(values)
        self._paint()
        if [*self.formatter.args["labels"]] != (labels := [_label(token) for token in strip["tokens"]]):
            self.formatter.args = {"labels": labels}
            step = -(-n // _MOST_LABELS)
            self.ticker.ticks = list(range(0, n, step))
        self._set(self.figure.x_range, start=-0.5, end=max(n, _FEWEST) - 0.5)
        low, high = _extent(values, strip)
        self._set(self.figure.y_range, start=low, end=high)
        self._set(self.zero, visible=low < 0 < high)
        at = cursor if cursor is not None else n - 1
        self._set(self.cursor, left=at - 0.5, right=at + 0.5, visible=cursor is not None)

    def _paint(self) -> None:
        strip = getattr(self, "strip", {})
        values = strip.get("values")
        if not values:
            return
        low, high = strip["low"], strip["high"]
        floor = _extent(values, strip)[0]
        known = [i for i, value in enumerate(values) if value is not None]
        self.source.data = {
            "x": np.array(known),
            "top": np.array([values[i] for i in known], dtype=float),
            "bottom": np.full(len(known), 0.0 if low <= 0 <= high else floor),
            "colour": [fill(values[i], strip["quantity"], low=low, high=high, theme=self.theme) for i in known],
            "token": [_label(strip["tokens"][i]) for i in known],
            "shown": [_shown(values[i], strip["unit"]) for i in known],
        }

    @staticmethod
    def _set(model: Any, **properties: Any) -> None:
        """Change only what differs: each change is a message."""
        for name, value in properties.items():
            if getattr(model, name) != value:
                setattr(model, name, value)


def _extent(values: list[float | None], strip: dict[str, Any]) -> tuple[float, float]:
    """The ends of the value axis: those of the scale where zero is part of it, else the values' own with room to see the lowest bar."""
    low, high = float(strip["low"]), float(strip["high"])
    known = [value for value in values if value is not None] or [0.0]
    if strip["unit"] == "probability":
        return 0.0, 1.0
    if low < 0 < high:
        bound = max(max(map(abs, known)), 1e-12) * 1.05
        return (-bound, bound) if min(known) < 0 else (0.0, bound)
    if low == 0:
        return 0.0, (max(known) or 1.0) * 1.08
    margin = 0.08 * ((high - low) or 1.0)
    return low - margin, high + margin


def _label(token: str) -> str:
    """A token under the axis: without the mark of its leading space, which is a space wide."""
    return shorten(token.removeprefix("␠") or "␣", 12)


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.3g} %" if unit == "probability" else f"{value:.3g} {unit}".strip()
