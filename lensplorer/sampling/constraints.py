"""Constraints on what may be said: one of several texts, a regular expression, a Lark grammar, a JSON schema.

llguidance compiles them and says, after any completion, which tokens may follow. A completion's state is a function of its tokens alone: a
``CompiledConstraint`` keeps one matcher and walks it from one completion to the next, rolling back what they do not share, so that
stepping back or to another branch is exact. A mask takes some 10 to 100 µs.

The whole completion must match, from its first token to its end; end of text is allowed exactly where the completion may end.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lensplorer.errors import SamplingError
from lensplorer.sampling.grammars import Constraint, compiled_grammar
from lensplorer.sampling.stopping import end_ids
from lensplorer.tokens import token_bytes, token_texts


class CompiledConstraint:
    """A constraint over one tokenizer. Safe to share between threads. Made by ``compile_constraint``.

    A *completion* below is a sequence of ids, which may end with an end-of-text token.
    """

    def __init__(self, constraint: Constraint, tokenizer: Any, d_vocab: int) -> None:
        self.constraint = constraint
        self.d_vocab = d_vocab
        self._tokenizer = tokenizer
        self._end_ids = [token for token in end_ids(tokenizer) if token < d_vocab]
        self._grammar: str = compiled_grammar(constraint)
        self._matcher = self._new()
        self._path: list[int] = []
        self._lock = threading.Lock()
        self._refuse_broken()

    def allowed(self, completion: Sequence[int]) -> np.ndarray:
        """Which tokens may follow ``completion``. [d_vocab], bool

        After an end of text none may.

        Raises:
            SamplingError: the completion violates the constraint, or no token may follow where it cannot end either.
        """
        with self._lock:
            mask = self._mask_after(completion)
        if not mask.any() and not self._is_ended(completion):
            raise SamplingError(
                f"The constraint ({self._described()}) admits no token here: nothing that begins with {self._text(completion)!r} matches."
            )
        return mask

    def fits(self, completion: Sequence[int]) -> int:
        """How many of the completion's tokens, from the front, the constraint admits one after the other."""
        with self._lock:
            return self._walk(completion)

    def require(self, completion: Sequence[int]) -> None:
        """Refuse a completion that cannot be continued to a match.

        Raises:
            SamplingError: naming the first token that does not fit and what would.
        """
        fitting = self.fits(completion)
        if fitting < len(completion):
            texts = token_texts(self._tokenizer, completion)
            would = np.flatnonzero(self.allowed(completion[:fitting]))
            examples = ", ".join(map(repr, token_texts(self._tokenizer, would[:5].tolist())))
            hint = f" {len(would)} would, such as {examples}." if len(would) else " Nothing may follow: the text is complete."
            raise SamplingError(
                f"Token {fitting + 1} of the completion, {texts[fitting]!r}, does not fit the constraint ({self._described()}) after "
                f"{''.join(texts[:fitting])!r}.{hint}"
            )

    def may_end(self, completion: Sequence[int]) -> bool:
        """Whether ``completion`` as it stands matches."""
        with self._lock:
            return self._walk(completion) == len(completion) and (self._is_ended(completion) or self._matcher.is_accepting())

    def is_complete(self, completion: Sequence[int]) -> bool:
        """Whether ``completion`` matches and nothing but an end of text may follow."""
        with self._lock:
            if self._walk(completion) < len(completion):
                return False
            if self._is_ended(completion):
                return True
            mask = self._mask_after(completion)
            mask[self._end_ids] = False
            return self._matcher.is_accepting() and not mask.any()

    # -- inside, under the lock ----------------------------------------------------------------------------------------------------

    def _is_ended(self, completion: Sequence[int]) -> bool:
        return len(completion) > 0 and completion[-1] in self._end_ids

    def _walk(self, completion: Sequence[int]) -> int:
        """Move the matcher to the end of ``completion`` or to its first token that does not fit; returns how many fit.

        End of text is settled here and never given to the matcher, which treats it differently before and after a forced stop.
        """
        ends = [at for at, token in enumerate(completion) if token in self._end_ids]
        body = list(completion[: ends[0]] if ends else completion)
        shared = next((at for at, (one, other) in enumerate(zip(self._path, body)) if one != other), min(len(self._path), len(body)))
        if shared < len(self._path):
            self._matcher.rollback(len(self._path) - shared)
            del self._path[shared:]
        fitting = self._matcher.try_consume_tokens(body[shared:]) if len(body) > shared else 0
        self._path += body[shared : shared + fitting]
        self._refuse_broken()
        if len(self._path) < len(body):
            return len(self._path)
        return len(body) + (1 if ends and self._matcher.is_accepting() else 0)

    def _mask_after(self, completion: Sequence[int]) -> np.ndarray:
        fitting = self._walk(completion)
        if fitting < len(completion):
            token = token_texts(self._tokenizer, completion[fitting : fitting + 1])[0]
            raise SamplingError(
                f"The completion so far does not fit the constraint ({self._described()}): its token {fitting + 1}, {token!r}, is not allowed there."
            )
        if self._is_ended(completion):
            return np.zeros(self.d_vocab, dtype=bool)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._refuse_broken()
        mask = np.zeros(self.d_vocab, dtype=bool)
        n = min(self.d_vocab, len(bits))
        mask[:n] = bits[:n]
        mask[self._end_ids] = self._matcher.is_accepting()  # llguidance also offers it where nothing else is left
        return mask

    def _new(self) -> Any:
        from llguidance import LLMatcher

        return LLMatcher(_ll_tokenizer(self._tokenizer, self.d_vocab), self._grammar, log_level=0)

    def _refuse_broken(self) -> None:
        if self._matcher.is_error():
            message = self._matcher.get_error().split("\n<state>")[0].strip()
            self._matcher, self._path = self._new(), []
            if message.startswith("NoExtension"):
                raise SamplingError(f"The constraint ({self._described()}) admits no token here: nothing can match it.")
            raise SamplingError(f"The constraint ({self._described()}) cannot be followed: {message}.")

    def _described(self) -> str:
        text = self.constraint.text
        return f"{self.constraint.kind} {text if len(text) <= 60 else text[:59] + '…'!r}"

    def _text(self, completion: Sequence[int]) -> str:
        return "".join(token_texts(self._tokenizer, completion))


@lru_cache(maxsize=32)
def compile_constraint(constraint: Constraint, tokenizer: Any, d_vocab: int) -> CompiledConstraint:
    """The constraint over a tokenizer, kept for the next call.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> yes_or_no = compile_constraint(Constraint.multiple_choice([" yes", " no"]), model.tokenizer, model.cfg.d_vocab)
    >>> yes_or_no.may_end(model.tokenizer.encode(" yes", add_special_tokens=False))
    True

    Args:
        constraint: what to match.
        tokenizer: a Hugging Face tokenizer.
        d_vocab: the model's vocabulary size, padding included.

    Raises:
        SamplingError: the constraint is invalid, or llguidance is not installed.

    Cost: about 1 ms, and a second for the first constraint over a large vocabulary.
    """
    compiled_grammar(constraint)  # its errors before the tokenizer's cost
    return CompiledConstraint(constraint, tokenizer, d_vocab)


# -- tokenizers ------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _ll_tokenizer(tokenizer: Any, d_vocab: int) -> Any:
    """llguidance's view of a Hugging Face tokenizer, padded to the model's vocabulary."""
    from llguidance import LLTokenizer
    from llguidance.hf import from_tokenizer

    n_vocab = max(d_vocab, len(tokenizer))
    ends = [*end_ids(tokenizer)]
    if getattr(tokenizer, "backend_tokenizer", None) is not None and ends:
        try:
            return from_tokenizer(tokenizer, n_vocab=n_vocab, eos_token=ends)
        except ValueError:  # a kind of tokenizer that llguidance does not know: it needs the bytes of each token
            pass
    vocabulary: Any = _Vocabulary(tokenizer, n_vocab, ends)
    return LLTokenizer(vocabulary, n_vocab=n_vocab, eos_token=ends or [n_vocab - 1])


class _Vocabulary:
    """What llguidance asks of a tokenizer it does not know."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Any, n_vocab: int, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [token_bytes(tokenizer, token) for token in range(n_vocab)]
        self.special_token_ids = sorted({*tokenizer.all_special_ids, *(t for t in range(n_vocab) if not self.tokens[t])})
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = ends[0] if ends else n_vocab - 1

    def __call__(self, text: str | bytes) -> list[int]:
        return list(self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8"), add_special_tokens=False))
