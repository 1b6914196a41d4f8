"""What an attribution file holds, whatever its format: tokens, where the generated ones begin, and a score per generated token and source.

Every format is read into an ``Attributions`` and written from one, so that converting is reading one and writing the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.arguments import expects
from lensplorer.errors import FormatError

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

#: Methods, of lensplorer and of Inseq, whose scores have no sign.
_UNSIGNED = ("saliency", "input_x_gradient_norm", "attention", "rollout")

#: How byte-level BPE draws a space, a newline and a tab, and SentencePiece a space.
_DRAWN_SPACES = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t", "▁": " "})


@dataclass(frozen=True, eq=False)
class Attributions:
    """Attributions of a whole generation.

    >>> content = Attributions(("a", "b"), (0, 1), 1, np.array([[0.5, 0.0]]))
    >>> content.scores[0, 0], content.scores.shape  # [generated, source]
    (np.float32(0.5), (1, 2))

    Attributes:
        pieces: the tokenizer's own piece of each token, prompt and generation ("Ġtime").
        token_ids: their ids; -1 where a file gives none.
        start: index of the first generated token.
        scores: how much each token speaks for each generated one; NaN where it cannot (itself and what comes later) and where a file does
            not say. [generated, source]
        texts: what each token adds to the text (" time"), where it is known; else as well as the piece tells.
        model, version, prompt, method: where they come from; empty when a file does not say.
        generation: how the text was generated, as plain data.
        timestamp: ISO-8601, or empty.
        step_scores: further scores of each generated token, e.g. its probability. name → [generated]
        extra: what else the file said about itself, as plain data.
    """

    pieces: tuple[str, ...]
    token_ids: tuple[int, ...]
    start: int
    scores: np.ndarray
    texts: tuple[str, ...] = ()
    model: str = ""
    version: str = ""
    prompt: str = ""
    method: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    timestamp: str = ""
    step_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.pieces)
        if len(self.token_ids) != n:
            raise FormatError(f"{n} tokens but {len(self.token_ids)} token ids: expected as many.")
        if not 0 <= self.start <= n:
            raise FormatError(f"The first generated token is {self.start}: expected 0 to {n}, the number of tokens.")
        if self.scores.shape != (n - self.start, n):
            raise FormatError(f"The scores have shape {self.scores.shape}: expected {(n - self.start, n)}, generated tokens × all tokens.")
        if not self.texts:
            object.__setattr__(self, "texts", tuple(map(text_of_piece, self.pieces)))
        object.__setattr__(self, "scores", without_future(np.asarray(self.scores, dtype=np.float32), self.start))

    def __repr__(self) -> str:
        return f"Attributions({self.method!r} of {self.model!r}, {self.start} + {len(self.pieces) - self.start} tokens)"

    def to_dataset(self) -> xr.Dataset:
        """The scores as a result of ``attribution_matrix``, for ``draw`` and for tables. (generated, source): attribution

        What a file leaves unsaid stays NaN; what causality excludes is 0, as ``attribution_matrix`` has it.
        """
        import xarray as xr

        n, generated = len(self.pieces), np.arange(self.start, len(self.pieces))
        texts = np.array(self.texts, dtype=object)
        scores = self.scores.copy()
        scores[np.arange(n) >= generated[:, None]] = 0
        further = {name: ("generated", np.asarray(values, dtype=np.float32)) for name, values in self.step_scores.items()}
        return xr.Dataset(
            {"attribution": (("generated", "source"), scores), **further},
            coords={
                "generated": generated,
                "generated_token": ("generated", texts[self.start :]),
                "source": np.arange(n),
                "source_token": ("source", texts),
            },
            attrs={
                "analysis": "attribution_matrix",
                "model": self.model,
                "method": self.method,
                "signed": int(self.method not in _UNSIGNED),
                "start": self.start,
                "source": "read from a file",
            },
        )


def without_future(scores: np.ndarray, start: int) -> np.ndarray:
    """Scores with NaN where a token cannot speak for a generated one: itself and all later ones. [generated, source]"""
    scores = scores.copy()
    generated = start + np.arange(len(scores))
    scores[np.arange(scores.shape[1]) >= generated[:, None]] = np.nan
    return scores


@expects
def attributions(
    trace: Trace, matrix: xr.Dataset, *, prompt: str | None = None, generation: Mapping[str, Any] | None = None, timestamp: str | None = None
) -> Attributions:
    """A result of ``attribution_matrix`` as what an attribution file holds.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> lp.attributions(trace, lp.attribution_matrix(trace, 3, method="occlusion"))
    Attributions('occlusion' of 'storyworld', 3 + 2 tokens)

    Args:
        trace: the run that was explained, over prompt and generated tokens.
        matrix: of that trace.
        prompt: the prompt's text. None: the text of the tokens before the first generated one, special tokens left out.
        generation: how the text was generated.
        timestamp: ISO-8601. None: now, in UTC.

    Raises:
        FormatError: the matrix is of another analysis or of other tokens.
    """
    from datetime import datetime

    if matrix.attrs.get("analysis") != "attribution_matrix":
        raise FormatError(f"An attribution file holds a result of attribution_matrix, not of {matrix.attrs.get('analysis', 'nothing known')!r}.")
    if list(matrix["source_token"].values) != trace.token_texts:
        raise FormatError("The attribution matrix is of other tokens than the trace: give the trace that attribution_matrix was called on.")
    tokenizer, ids = trace.model.tokenizer, [int(token_id) for token_id in trace.tokens]
    start = int(matrix["generated"].values[0])
    pieces = [piece if piece is not None else text for piece, text in zip(tokenizer.convert_ids_to_tokens(ids), trace.token_texts)]
    info = trace.info
    return Attributions(
        pieces=tuple(map(str, pieces)),
        token_ids=tuple(ids),
        start=start,
        scores=matrix["attribution"].values,
        texts=tuple(trace.token_texts),
        model=info.name,
        version=info.revision or "",
        prompt=tokenizer.decode(ids[:start], skip_special_tokens=True) if prompt is None else prompt,
        method=str(matrix.attrs["method"]),
        generation=dict(generation or {}),
        timestamp=datetime.now(UTC).isoformat(timespec="seconds") if timestamp is None else timestamp,
        step_scores={"value": matrix["value"].values} if "value" in matrix else {},
        extra={"architecture": info.architecture, "tokenizer": type(tokenizer).__name__},
    )


def text_of_piece(piece: str) -> str:
    """The text of a vocabulary piece, without its tokenizer: byte-level BPE and SentencePiece write a space in their own ways.

    >>> text_of_piece("Ġtime"), text_of_piece("▁time"), text_of_piece("<|endoftext|>")
    (' time', ' time', '<|endoftext|>')
    """
    return piece.translate(_DRAWN_SPACES)
