"""The views: ways to colour the tokens of the strip, each a number per position from one analysis.

The order is that of the ``e`` key. A view whose analysis does not exist in this installation is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from lensplorer.dashboard.asking import Dictionary
from lensplorer.errors import SAEError
from lensplorer.linear import LINEAR
from lensplorer.tokens import visible


class Ask(Protocol):
    """How a view asks for results: the current trace's, remembered while the prompt stays the same."""

    layer: int
    position: int
    aim: int
    d_vocab: int
    state: Any
    saes: Any

    def strongest_feature(self) -> int | None: ...

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Badge:
    """How far the identity behind a number is kept: the figure, ``"good"``, ``"near"`` or ``"bad"``, and the identity in words."""

    text: str
    level: str
    about: str


@dataclass(frozen=True)
class Colouring:
    """A number per token and the ends of its scale.

    Attributes:
        values: NaN where there is none. [position]
        low, high: the values at the ends of the colour scale.
        title: what exactly is shown ("Cosine to the last token").
        badge: the identity that the numbers keep, where METHODS names one.
    """

    values: np.ndarray
    low: float
    high: float
    title: str
    badge: Badge | None = None


@dataclass(frozen=True)
class TokenView:
    """One view.

    Attributes:
        name: its name, and its place in the keys 1-9 by order.
        label: what the page calls it; ``short`` on its tab.
        quantity: the colour scale (``views.style``); empty for plain text.
        unit: ``"probability"`` (shown as 12.3 %), or a unit's name.
        functions: the analyses it asks, as (module of ``lensplorer.analyses``, name).
        colour: (ask, *analyses) → colouring.
        by_layer: whether the keys n and b change it.
    """

    name: str
    label: str
    short: str
    quantity: str
    unit: str
    functions: tuple[tuple[str, str], ...]
    colour: Callable[..., Colouring] | None
    by_layer: bool = False

    def analyses(self) -> list[Callable[..., Any]] | None:
        """The functions themselves, or None when one of them does not exist here."""
        found = []
        for module, name in self.functions:
            try:
                found.append(getattr(import_module(f"lensplorer.analyses.{module}"), name))
            except (ModuleNotFoundError, AttributeError):
                return None
        return found


def _probability(ask: Ask, token_scores: Callable[..., Any]) -> Colouring:
    return Colouring(ask(token_scores).probability.values, 0.0, 1.0, "Probability of each token")


def _entropy(ask: Ask, token_scores: Callable[..., Any]) -> Colouring:
    return Colouring(ask(token_scores).entropy.values, 0.0, float(np.log(ask.d_vocab)), "Entropy of the prediction of each token")


def _influence(ask: Ask, attention_influence: Callable[..., Any]) -> Colouring:
    result = ask(attention_influence, position=ask.position)
    return Colouring(result.influence.values, 0.0, 1.0, f"Attention influence on the prediction after position {ask.position}")


def _local_bias(ask: Ask, token_similarity: Callable[..., Any]) -> Colouring:
    values = ask(token_similarity, position=ask.position).cosine.values
    return Colouring(values, -1.0, 1.0, f"Cosine of each token's final residual to that at position {ask.position}")


def _energy(ask: Ask, token_scores: Callable[..., Any]) -> Colouring:
    values = ask(token_scores).energy.values
    return Colouring(values, *_range(values), "Free energy of the prediction of each token")


def _attribution(ask: Ask, attribute: Callable[..., Any]) -> Colouring:
    result = ask(attribute, ask.aim, method=LINEAR, position=ask.position)
    values = result.attribution.values
    bound = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    title = f"Attribution (linear) of {visible(str(result.attrs['target']))} after position {ask.position}"
    missed = float(result.attrs["completeness"])
    level = "good" if missed <= 1e-4 else "near" if missed <= 1e-3 else "bad"
    badge = Badge(f"Σ {brief(missed)}", level, "Σ tokens + positions + biases = the logit: how far the sum misses, relative.")
    return Colouring(values, -bound, bound, title, badge)


def _hidden_similarity(ask: Ask, hidden_similarity: Callable[..., Any]) -> Colouring:
    values = ask(hidden_similarity).cosine.values[ask.layer]
    return Colouring(values, -1.0, 1.0, f"Cosine of layer {ask.layer} to the last layer, per token")


def _residual(ask: Ask, residual_norms: Callable[..., Any]) -> Colouring:
    norms = ask(residual_norms).norm.values
    return Colouring(norms[ask.layer], 0.0, float(np.nanmax(norms)), f"Norm of the residual stream after layer {ask.layer}")


def _features(ask: Ask, feature_values: Callable[..., Any]) -> Colouring:
    name = ask.saes.chosen
    if not name:
        raise SAEError(f"Loading {ask.saes.loading[0]} …" if ask.saes.loading else "No SAE is loaded: press f to choose one.")
    feature = ask.strongest_feature() if ask.state.feature is None else ask.state.feature
    if feature is None:
        raise SAEError(f"No feature of {name} is active at position {ask.position}: move the cursor (c), or choose a feature in the features panel.")
    values = ask(feature_values, Dictionary(name), feature).activation.values[:, 0]
    which = "" if ask.state.feature is not None else "strongest here: "
    label = ask.saes.labels(name, [feature])[0].text
    return Colouring(values, 0.0, max(float(values.max(initial=0.0)), 1e-6), f"{which}feature {feature} of {name} ({label})")


def brief(value: float) -> str:
    """A small number as the page writes it: 7e−6."""
    return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−") if value else "0"


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value; (0, 1) when there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


ALL_VIEWS = (
    TokenView("prompt", "Prompt", "Prompt", "", "", (), None),
    TokenView("probability", "Probability", "Probability", "probability", "probability", (("scores", "token_scores"),), _probability),
    TokenView("entropy", "Entropy", "Entropy", "entropy", "nats", (("scores", "token_scores"),), _entropy),
    TokenView("influence", "Attention influence", "Attention", "attention", "", (("attention", "attention_influence"),), _influence),
    TokenView("local_bias", "Local bias", "Local bias", "signed", "", (("residual", "token_similarity"),), _local_bias),
    TokenView("energy", "Energy", "Energy", "energy", "nats", (("scores", "token_scores"),), _energy),
    TokenView("attribution", "Gradient attribution", "Attribution", "signed", "", (("attribution", "attribute"),), _attribution),
    TokenView(
        "hidden_similarity", "Hidden-state similarity", "Similarity", "signed", "", (("residual", "hidden_similarity"),), _hidden_similarity, True
    ),
    TokenView("residual", "Residual stream", "Residual", "norm", "", (("residual", "residual_norms"),), _residual, True),
    TokenView("features", "SAE features", "Features", "feature", "", (("features", "feature_values"),), _features),
)


def available_views() -> dict[str, TokenView]:
    """The views whose analyses exist, by name, in the order of ``e``."""
    return {view.name: view for view in ALL_VIEWS if view.analyses() is not None}
