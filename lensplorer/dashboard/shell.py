"""The shell: one JavaScript component that holds the regions of the page and takes the keys.

Its parameters are the parts of a snapshot; only parts that changed are sent. Its source is several files, joined here: no build step, and no
import that would need a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import Children, JSComponent

from lensplorer.dashboard.actions import command_table
from lensplorer.views.style import QUANTITIES, THEMES, colormap, ink

_HERE = Path(__file__).parent
_SCRIPTS = ("base", "strip", "candidates", "lens", "rail", "status", "dialogs", "keys", "shell")
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
    """The whole page but for the plots, which are its children."""

    lens_model = param.Dict(default={}, doc="The model's chip.")
    strip = param.Dict(default={}, doc="Tokens and their colours.")
    candidates = param.Dict(default={}, doc="The next tokens.")
    lens = param.Dict(default={}, doc="The logit lens around the position looked at.")
    prompts = param.Dict(default={}, doc="The tree of prompts.")
    status = param.Dict(default={}, doc="Where the person is, and what went wrong.")
    commands = param.List(default=[], doc="The table of commands.")
    scales = param.Dict(default={}, doc="Colour scales by quantity and theme.")
    ready = param.Boolean(default=False, doc="Whether commands arrive; until then the browser keeps them.")
    panels = Children(doc="The plots of the main panel.")

    _esm = "\n".join((_HERE / "js" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    _stylesheets: ClassVar[list[str]] = [(_HERE / "css" / "shell.css").read_text(encoding="utf-8"), theme_css()]

    def __init__(self, **params: Any) -> None:
        super().__init__(commands=command_table(), scales=scales(), **params)
