"""Colours: one scale per quantity, the same on the whole page, in both themes.

Scales are anchored by hand and interpolated in linear light. Ink on a fill is computed, so that text always passes contrast 4.5 : 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

#: theme → the page's own colours. The accent is for cursor, selection and focus alone; good, near and bad are for trust badges and errors.
THEMES: dict[str, dict[str, str]] = {
    "dark": {
        "background": "#0b1018",
        "card": "#121925",
        "line": "#243042",
        "hover": "#1b2534",
        "text": "#dbe3ee",
        "muted": "#8d9bb0",
        "accent": "#f0b429",
        "good": "#4fb892",
        "near": "#d9a441",
        "bad": "#f2836b",
        "veil": "rgba(5, 8, 13, 0.66)",
    },
    "light": {
        "background": "#f7f9fc",
        "card": "#ffffff",
        "line": "#d5dce6",
        "hover": "#eef2f7",
        "text": "#17202e",
        "muted": "#56647a",
        "accent": "#b26a00",
        "good": "#1d7a57",
        "near": "#96690a",
        "bad": "#b3361b",
        "veil": "rgba(40, 52, 70, 0.32)",
    },
}

#: quantity → theme → anchors from low to high. Signed quantities are symmetric about the card's colour.
_ANCHORS: dict[str, dict[str, list[str]]] = {
    "probability": {"dark": ["#7a2e2e", "#5b4a6e", "#2f6fb5", "#5db4f0"], "light": ["#f4b8a8", "#d9cfe6", "#9cc3ec", "#3f8fd8"]},
    "entropy": {"dark": ["#121925", "#3b2f63", "#8158c9", "#c9a8ff"], "light": ["#ffffff", "#e2d8f7", "#b398e6", "#7646c4"]},
    "energy": {"dark": ["#0f6e66", "#2b3a4d", "#c2571a"], "light": ["#7cc9bf", "#eef1f5", "#ee9a62"]},
    "attention": {"dark": ["#121925", "#164a52", "#1f8f95", "#7be0dc"], "light": ["#ffffff", "#c8eceb", "#62bfbf", "#0f7d80"]},
    "signed": {"dark": ["#e0633f", "#6e3a33", "#121925", "#2c4a74", "#4f9cf0"], "light": ["#cc4a26", "#f3b9a6", "#ffffff", "#a9c9f2", "#2468c0"]},
    "feature": {"dark": ["#121925", "#5a2f52", "#b04a8f", "#f3a6da"], "light": ["#ffffff", "#f3d6ea", "#d98cc0", "#a83a86"]},
    "norm": {"dark": ["#121925", "#3d4a2f", "#809a3c", "#d3e57a"], "light": ["#ffffff", "#e6edc8", "#aec45b", "#68801a"]},
}

QUANTITIES = tuple(_ANCHORS)

#: Features and clusters: at most eight categories, told apart by colour-blind eyes (after Okabe and Ito 2008).
CATEGORIES = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442", "#999999"]


@lru_cache
def colormap(quantity: str, theme: str = "dark", steps: int = 256) -> list[str]:
    """Hex colours from the low to the high end of the scale of ``quantity``."""
    anchors = np.array([_rgb(colour) for colour in _ANCHORS[quantity][theme]]) ** 2.2
    at = np.linspace(0, len(anchors) - 1, steps)
    mixed = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], 1) ** (1 / 2.2)
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in colour) for colour in mixed]


def fill(value: float, quantity: str, *, low: float = 0.0, high: float = 1.0, theme: str = "dark") -> str:
    """The colour of ``value`` on the scale of ``quantity``, clipped to [low, high]."""
    scale = colormap(quantity, theme)
    share = (value - low) / (high - low) if high > low else 0.0
    return scale[int(np.clip(round(share * (len(scale) - 1)), 0, len(scale) - 1))]


def ink(background: str) -> str:
    """Black or white, whichever contrasts more with ``background`` (always at least 4.5 : 1)."""
    luminance = _luminance(background)
    return "#ffffff" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "#000000"


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
