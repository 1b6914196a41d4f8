"""The shell: one JavaScript component that holds the regions of the page and takes the keys.

Its source is several files, joined here: no build step, and no
import that would need a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent
from panel.models.esm import ESMEvent

from lensplorer.dashboard.actions import command_table
from lensplorer.dashboard.panels import panel_table
from lensplorer.views.style import QUANTITIES, THEMES, colormap, ink

_HERE = Path(__file__).parent
_SCRIPTS = ("base", "figures", "strip", "candidates", "panels", "rail", "status", "dialogs", "keys", "shell")
_STEPS = 65  #: colours of a scale as sent to the browser


def scales() -> dict[str, dict[str, dict[str, list[str]]]]:
    """quantity → theme → the fills of the scale from low to high, and the ink for text on each."""
    made: dict[str, dict[str, dict[str, list[str]]]] = {}
    for quantity in QUANTITIES:
        for theme in THEMES:
            fills = colormap(quantity, theme, _STEPS)
            made.setdefault(quantity, {})[theme] = {"fill": fills, "ink": [ink(fill) for fill in fills]}
    return made


def theme_css() -> str:
    """The themes as custom properties of the shell."""
    rules = [
        f'.lensplorer[data-theme="{theme}"] {{ color-scheme: {theme}; {" ".join(f"--{name}: {value};" for name, value in colours.items())} }}'
        for theme, colours in THEMES.items()
    ]
    return "\n".join(rules)


class Shell(JSComponent):
    """The whole page.

    Snapshots go to the browser as JSON text in messages: as nested parameters, Bokeh would search each of them for models, which takes longer
    than all the rest of a step.
    """

    setup = param.String(default="{}", doc="JSON of what the browser is made from: commands, scales and the first snapshot.")
    ready = param.Boolean(default=False, doc="Whether commands arrive; until then the browser keeps them.")

    _esm = "\n".join((_HERE / "js" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    _stylesheets: ClassVar[list[str]] = [(_HERE / "css" / "shell.css").read_text(encoding="utf-8"), theme_css()]

    def __init__(self, parts: dict[str, Any], **params: Any) -> None:
        super().__init__(
            setup=json.dumps({"commands": command_table(), "scales": scales(), "themes": THEMES, "panels": panel_table(), "parts": parts}), **params
        )
        self._shown: dict[str, Any] = {}

    def show(self, parts: dict[str, Any]) -> set[str]:
        """Send the parts that differ from those shown; returns their names. The document must be locked."""
        changed = {name: part for name, part in parts.items() if self._shown.get(name) != part}
        if changed:
            self._shown |= changed
            text = json.dumps(changed, allow_nan=False)
            for model, _ in self._models.values():
                if model.document is not None:  # by Bokeh itself: Panel's own queue of writes loses one now and then
                    model.document.callbacks.send_event(ESMEvent(model=model, data=text))
        return set(changed)

    def forget(self) -> None:
        """Send everything with the next snapshot: the browser has nothing yet."""
        self._shown = {}
