"""What an explanation is about: a candidate's logit, or its lead over another token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lensplorer.dashboard.panels.base import Control, Settings
from lensplorer.errors import LensplorerError
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

NOTHING, BEST_OTHER, TOKEN = "nothing", "best other", "a token"

AGAINST = (
    Control(
        "against",
        "against",
        NOTHING,
        (NOTHING, BEST_OTHER, TOKEN),
        about="Explain the logit, or its difference to that of the best other candidate, or of a token",
    ),
    Control("versus", "token", "", when=lambda settings: settings["against"] == TOKEN, about="Exactly one token, with its leading space"),
)


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
