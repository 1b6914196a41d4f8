"""Pictures of token scores and of the most likely next tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.tokens import visible
from lensplorer.views.attention import token_bars
from lensplorer.views.base import token_formatter, view
from lensplorer.views.style import THEMES, colormap

if TYPE_CHECKING:
    import xarray as xr

#: score → (title, colour scale, its ends where they are fixed)
_SCORES: dict[str, tuple[str, str, tuple[float, float] | None]] = {
    "probability": ("Probability of each token", "probability", (0.0, 1.0)),
    "surprisal": ("Surprisal (bits)", "entropy", None),
    "rank": ("Rank of each token", "entropy", None),
    "entropy": ("Entropy of the prediction (nats)", "entropy", None),
    "normalised_entropy": ("Entropy, of its maximum", "entropy", (0.0, 1.0)),
    "energy": ("Free energy (nats)", "energy", None),
}


@view("token_scores")
def token_scores(result: xr.Dataset, *, theme: str = "dark", score: str = "probability") -> Any:
    """A bar per token; nothing where the model made no prediction."""
    if score not in _SCORES:
        raise AnalysisError(f"Unknown score {score!r}.{did_you_mean(score, _SCORES)}")
    title, quantity, ends = _SCORES[score]
    values = np.asarray(result[score].values, dtype=float)
    finite = values[np.isfinite(values)]
    if ends is None:
        ends = (float(finite.min()), float(finite.max())) if finite.size and finite.min() < finite.max() else (0.0, 1.0)
    bars = token_bars(values, list(result.token.values), dimension="position", value=score, title=title, quantity=quantity, theme=theme)
    return bars.opts(clim=ends)


@view("next_token")
def next_token(result: xr.Dataset, *, theme: str = "dark") -> Any:
    """A horizontal bar per candidate, the most likely on top."""
    import holoviews as hv

    p = np.asarray(result.probability.values, dtype=float)
    texts = [str(text) for text in result.token.values]
    at = np.arange(len(p))
    names = [visible(text) for text in texts]
    columns = (np.zeros(len(p)), at - 0.42, p, at + 0.42, p, result["rank"].values, names, result.logit.values, result.z_score.values)
    bars = hv.Rectangles(columns, kdims=["left", "bottom", "right", "top"], vdims=["probability", "rank", "token", "logit", "z_score"])
    return bars.opts(
        color="probability",
        cmap=colormap("probability", theme),
        clim=(0.0, 1.0),
        line_color=THEMES[theme]["line"],
        tools=["hover"],
        invert_yaxis=True,
        width=360,
        height=int(np.clip(80 + 18 * len(p), 140, 620)),
        title="Next token",
        xlabel="probability",
        ylabel="",
        xlim=(0.0, max(1e-9, 1.05 * float(p.max(initial=0.0)))),
        ylim=(-0.6, len(p) - 0.4),
        yformatter=token_formatter(texts),
        bgcolor=THEMES[theme]["card"],
    )
