"""The panels, in their order on a new page, and how one becomes a part of the page's picture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lensplorer.dashboard.costs import key_of
from lensplorer.dashboard.panels.attention import ATTENTION
from lensplorer.dashboard.panels.attribution import ATTRIBUTION, MATRIX
from lensplorer.dashboard.panels.base import ASK_ABOVE, Panel
from lensplorer.dashboard.panels.comparison import COMPARISON
from lensplorer.dashboard.panels.features import FEATURES
from lensplorer.dashboard.panels.interventions import INTERVENTIONS
from lensplorer.dashboard.panels.lenses import CONTRAST, LAYERS, LENS
from lensplorer.dashboard.panels.patching import PATCHING
from lensplorer.dashboard.panels.residual import DECOMPOSITION
from lensplorer.dashboard.panels.sampling import SAMPLING
from lensplorer.dashboard.panels.timeline import TIMELINE
from lensplorer.errors import Cancelled, LensplorerError

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

logger = logging.getLogger(__name__)

PANELS: dict[str, Panel] = {
    panel.name: panel
    for panel in (
        TIMELINE,
        LENS,
        DECOMPOSITION,
        ATTENTION,
        ATTRIBUTION,
        MATRIX,
        FEATURES,
        CONTRAST,
        LAYERS,
        SAMPLING,
        INTERVENTIONS,
        PATCHING,
        COMPARISON,
    )
}


def panel_table() -> list[dict[str, Any]]:
    """The panels as the browser reads them once."""
    return [
        {"name": panel.name, "title": panel.title, "about": panel.about, "span": panel.span, "height": panel.height, "open": panel.is_open}
        for panel in PANELS.values()
    ]


def needed_reads() -> list[Callable[..., Any]]:
    """The analyses whose activations each trace must hold so that no panel needs another run."""
    return [getattr(import_module(f"lensplorer.analyses.{module}"), name) for panel in PANELS.values() for module, name in panel.reads]


def panel_part(explorer: Explorer, name: str) -> dict[str, Any]:
    """One panel as the browser draws it: its controls, and its figures, its error, or what it would cost to run.

    Raises:
        Cancelled: a command came in between; the browser keeps its old picture.
    """
    panel = PANELS[name]
    part: dict[str, Any] = {}
    if explorer.session is None or not explorer.session.ids:
        return {"empty": panel.about}
    try:
        settings = panel.settings(explorer)
        part["controls"] = [_control(explorer, control, settings) for control in panel.controls if control.when(settings)]
        seconds = explorer.cost(panel, settings)
        if seconds > ASK_ABOVE and not explorer.costs.is_granted(key_of(name, settings)):
            return part | {"cost": seconds, "note": panel.about}
        with explorer.building(panel, settings):
            part |= panel.build(explorer, settings)
    except Cancelled:
        raise
    except LensplorerError as error:
        part["error"] = str(error)
    except Exception as error:
        logger.exception("The panel %s failed", name)
        part["error"] = f"{type(error).__name__}: {error}"
    return part


def _control(explorer: Explorer, control: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": control.name,
        "label": control.label,
        "value": settings[control.name],
        "type": "flag" if isinstance(control.default, bool) else "number" if isinstance(control.default, (int, float)) else "text",
        "choices": control.options(explorer),
        "about": control.about,
    }
