"""Errors that a user can act on.

Every message names the input, what was expected, and what would fit. The command line prints the message alone, the page shows it in
the panel concerned, the HTTP API returns it as ``detail``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class LensplorerError(Exception):
    """Base of every error that lensplorer raises on purpose.

    >>> import lensplorer as lp
    >>> try:
    ...     lp.load_model("storyworld", backend="hoked")
    ... except lp.LensplorerError as error:
    ...     print(error)
    Unknown backend 'hoked'. Did you mean 'hooked'?
    """


class ArgumentError(LensplorerError, TypeError):
    """A function was given another kind of thing than it wants: a text where a trace is meant."""


class ModelError(LensplorerError):
    """A model cannot be found, loaded, or trusted to compute what Hugging Face computes."""


class PromptError(LensplorerError):
    """A prompt cannot be fed: empty, too long, an id outside the vocabulary, no chat template."""


class TokenError(LensplorerError):
    """A text that should be exactly one token is not."""


class TraceError(LensplorerError):
    """A trace lacks what an analysis needs: an activation, a gradient, a position."""


class AnalysisError(LensplorerError):
    """An analysis refuses: a bad option, or a number that cannot be right."""


class SAEError(LensplorerError):
    """An SAE or transcoder cannot be found or loaded, or does not fit the model and prompt it is used on."""


class ConfigError(LensplorerError):
    """A configuration or input file cannot be read or has an unknown key."""


class FormatError(LensplorerError):
    """A file of results cannot be read or written: missing, damaged, of another kind, too large, or the disk is full."""


class SamplingError(LensplorerError):
    """Decoding parameters or a constraint cannot be used: out of range, invalid, or admitting no token here."""


class Cancelled(LensplorerError):
    """Long work was stopped on request, by whoever watched it."""


class SessionError(LensplorerError):
    """An action does not apply to the session as it is."""


def nearest(name: str, choices: Iterable[str], *, n: int = 3) -> list[str]:
    """The ``n`` choices that look most like ``name``, best first, ignoring case.

    >>> nearest("gpt-2", ["gpt2", "llama", "gpt2-xl"])
    ['gpt2', 'gpt2-xl']
    """
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.5)]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence that offers the nearest choices, or lists all when few, or nothing.

    >>> did_you_mean("hoked", ["auto", "hooked", "bridge"])
    " Did you mean 'hooked'?"
    >>> did_you_mean("x", ["auto", "bridge"])
    " Choose from 'auto', 'bridge'."
    """
    choices = list(choices)
    close = nearest(name, choices)
    if close:
        return " Did you mean " + " or ".join(repr(match) for match in close) + "?"
    if 0 < len(choices) <= 12:
        return " Choose from " + ", ".join(repr(choice) for choice in choices) + "."
    return ""


_HALF = re.compile("[\ud800-\udfff]")


def check_unicode(text: str, what: str, error: type[LensplorerError]) -> None:
    """Refuse a text with half of a surrogate pair: no file, tokenizer or browser takes it.

    Raises:
        error: naming ``what`` the text is.
    """
    if _HALF.search(text):
        raise error(f"{what} holds half of a surrogate pair, which is no character: leave it out.")


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 300 characters.

    >>> first_line(ValueError("no such file\\nTraceback ..."))
    'no such file'
    """
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
