"""What an explanation is about: a candidate's logit, or its lead over another token; and by which rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lensplorer.dashboard.panels.base import Control, Settings
from lensplorer.errors import LensplorerError
from lensplorer.linear import RULES
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

NOTHING, BEST_OTHER, TOKEN = "nothing", "best other candidate", "a token"

AGAINST = (
    Control("against", "against", NOTHING, (NOTHING, BEST_OTHER, TOKEN), about="Explain the logit, or its difference to another token's"),
    Control("versus", "token", "", when=lambda settings: settings["against"] == TOKEN, about="Exactly one token, with its leading space"),
)


def rule(when: Callable[[Settings], bool]) -> Control:
    """The rule of the local linear model, where it is asked."""
    return Control("rule", "rule", RULES[0], RULES, when=when, about="How a gated MLP's product is shared: the gate held, or half and half")


def best_other(explorer: Explorer, than: str | int) -> int | None:
    """The likeliest candidate but this one; None where there is none."""
    return next((token_id for token_id in explorer.candidates().token_id.values.tolist() if token_id != than), None)


def versus_of(explorer: Explorer, settings: Settings, target: int) -> str | int | None:
    """The token that the target is held against, by ``AGAINST``; None: nothing.

    Raises:
        LensplorerError: there is no other candidate.
    """
    if settings["against"] == BEST_OTHER:
        found = best_other(explorer, target)
        if found is None:
            raise LensplorerError("There is no other candidate: clear the search, or name a token.")
        return found
    return settings["versus"] or None if settings["against"] == TOKEN else None


def name_of(explorer: Explorer, target: int, versus: str | int | None) -> str:
    """Both tokens as a title says them."""
    other = "" if versus is None else f" − {visible(versus) if isinstance(versus, str) else explorer.shown_token(versus)}"
    return explorer.shown_token(target) + other
