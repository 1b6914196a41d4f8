"""Which tokens of one run answer to which of another: token by token, or by the span of text where tokenizers differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from lensplorer.errors import PromptError, did_you_mean
from lensplorer.tokens import token_bytes, visible
from lensplorer.trace import Trace

ALIGNMENTS = ("auto", "position", "end", "text")


@dataclass(frozen=True)
class Span:
    """Tokens ``first_a`` to ``last_a`` of one run and ``first_b`` to ``last_b`` of the other, both included."""

    first_a: int
    last_a: int
    first_b: int
    last_b: int


def align_tokens(clean: Trace, corrupt: Trace) -> list[int]:
    """The positions at which two prompts of as many tokens differ.

    >>> import lensplorer as lp
    >>> from lensplorer.alignment import align_tokens
    >>> model = lp.load_model("storyworld")
    >>> clean, corrupt = lp.run_trace(model, "The capital of France is"), lp.run_trace(model, "The capital of Norway is")
    >>> [clean.token_texts[position] for position in align_tokens(clean, corrupt)]
    [' France']

    Raises:
        PromptError: they are not of as many tokens; the message shows the first mismatch and what would fit.
    """
    differ = [i for i, (a, b) in enumerate(zip(clean.tokens.tolist(), corrupt.tokens.tolist())) if a != b]
    if len(clean) == len(corrupt):
        return differ
    shared = min(len(clean), len(corrupt))
    at = differ[0] if differ else shared
    raise PromptError(
        f"The prompts do not align token by token: {len(clean)} tokens and {len(corrupt)}. They first differ at position {at}:"
        f" {_around(clean, at)} against {_around(corrupt, at)}. Replace words by words of as many tokens, leading space included."
    )


def _around(trace: Trace, at: int) -> str:
    shown = " ".join(f"'{visible(text)}'" for text in trace.token_texts[at : at + 4])
    return (shown or "the end") + (" …" if len(trace) > at + 4 else "")


def same_tokens(a: Trace, b: Trace) -> bool:
    """Whether an id means the same token to both models."""
    one, other = a.model.tokenizer, b.model.tokenizer
    return one is other or one.get_vocab() == other.get_vocab()


def align(a: Trace, b: Trace, *, by: str = "auto") -> list[Span]:
    """The spans of two runs that answer to each other.

    Args:
        by: ``"position"``: token by token from the front; ``"end"``: token by token from the end; ``"text"``: the shortest spans of text at
            whose ends both tokenizations have a boundary; ``"auto"``: by position where both have the same tokens, else by text.

    Raises:
        PromptError: by text, and the texts differ; the message shows where.
    """
    if by not in ALIGNMENTS:
        raise PromptError(f"Unknown alignment {by!r}.{did_you_mean(by, ALIGNMENTS)}")
    if by == "text" or (by == "auto" and not same_tokens(a, b)):
        return align_text(a, b)
    n, skip_a, skip_b = min(len(a), len(b)), 0, 0
    if by == "end":
        skip_a, skip_b = len(a) - n, len(b) - n
    return [Span(skip_a + i, skip_a + i, skip_b + i, skip_b + i) for i in range(n)]


def align_text(a: Trace, b: Trace) -> list[Span]:
    """Spans of the same text. Special tokens have none: those at the front belong to no span, later ones to the span that follows.

    Raises:
        PromptError: the texts differ.
    """
    pieces_a, pieces_b = _pieces(a), _pieces(b)
    text_a, text_b = b"".join(pieces_a), b"".join(pieces_b)
    if text_a.startswith(b" ") != text_b.startswith(b" "):  # the space that SentencePiece puts in front of a text
        pieces_a, pieces_b = _without_space(pieces_a), _without_space(pieces_b)
        text_a, text_b = text_a.removeprefix(b" "), text_b.removeprefix(b" ")
    if text_a != text_b:
        at = next((i for i, (x, y) in enumerate(zip(text_a, text_b)) if x != y), min(len(text_a), len(text_b)))
        shown = [text[max(0, at - 20) : at + 20].decode("utf-8", errors="replace") for text in (text_a, text_b)]
        raise PromptError(
            f"Two tokenizations align by text only where the text is the same; it differs at byte {at}: {shown[0]!r} against {shown[1]!r}."
        )
    ends_a, ends_b = _ends(pieces_a), _ends(pieces_b)
    boundaries = [0, *sorted(ends_a.keys() & ends_b.keys())]
    starts_a, starts_b = {0: _leading(pieces_a)}, {0: _leading(pieces_b)}
    starts_a |= {end: last + 1 for end, last in ends_a.items()}
    starts_b |= {end: last + 1 for end, last in ends_b.items()}
    return [Span(starts_a[start], ends_a[stop], starts_b[start], ends_b[stop]) for start, stop in pairwise(boundaries)]


def _pieces(trace: Trace) -> list[bytes]:
    return [token_bytes(trace.model.tokenizer, token_id) for token_id in trace.tokens.tolist()]


def _without_space(pieces: list[bytes]) -> list[bytes]:
    first = _leading(pieces)
    return [piece.removeprefix(b" ") if i == first else piece for i, piece in enumerate(pieces)]


def _leading(pieces: Iterable[bytes]) -> int:
    """How many tokens without text stand in front."""
    return next((i for i, piece in enumerate(pieces) if piece), 0)


def _ends(pieces: list[bytes]) -> dict[int, int]:
    """Offset of each boundary → the first token that ends there. Nothing ends at 0."""
    found: dict[int, int] = {}
    offset = 0
    for i, piece in enumerate(pieces):
        offset += len(piece)
        if piece and offset:
            found[offset] = i
    return found
