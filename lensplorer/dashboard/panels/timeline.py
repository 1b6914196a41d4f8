"""The current view's number of each token, over the token axis: the strip's own numbers as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensplorer.dashboard.colouring import Colouring
from lensplorer.dashboard.panels.base import Panel, Picture, Settings, columns

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer


def _build(explorer: Explorer, settings: Settings) -> Picture:
    view = explorer.views[explorer.state.view]
    colouring = explorer.colouring()
    if colouring is None:
        return {"figures": [], "note": "The plain prompt has no numbers: press e for the first view of it."}
    low, high, floor = _extent(colouring, view.unit)
    figure = columns(
        colouring.values,
        explorer.shown_tokens(),
        low=colouring.low,
        high=colouring.high,
        quantity=view.quantity,
        unit=view.unit,
        bottom=low,
        top=high,
        floor=floor,
    )
    return {"figures": [figure], "title": colouring.title}


def _extent(colouring: Colouring, unit: str) -> tuple[float, float, float]:
    """The ends of the value axis, and where bars start: the scale's where zero is part of it, else the values' own with room for the lowest bar."""
    low, high = colouring.low, colouring.high
    known = [float(value) for value in colouring.values if value == value] or [0.0]
    if unit == "probability":
        return 0.0, 1.0, 0.0
    if low < 0 < high:
        bound = max(max(map(abs, known)), 1e-12) * 1.05
        return (-bound if min(known) < 0 else 0.0), bound, 0.0
    if low == 0:
        return 0.0, (max(known) or 1.0) * 1.08, 0.0
    margin = 0.08 * ((high - low) or 1.0)
    return low - margin, high + margin, low - margin


TIMELINE = Panel(
    name="timeline",
    title="Timeline",
    about="The current view's number of each token, over the text.",
    build=_build,
    span=12,
    height=200,
)
