"""When generation ends: an end-of-text token, a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

#: Ends of a turn in common chat formats. A tokenizer's own EOS is often the end of a document instead.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")


@lru_cache(maxsize=16)
def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text or a turn: the tokenizer's EOS first, then the special tokens known to end a turn of chat.

    Empty when the tokenizer has none.
    """
    own = tokenizer.eos_token_id
    found = [] if own is None else [*own] if isinstance(own, (list, tuple)) else [own]
    special = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(dict.fromkeys(int(token) for token in [*found, *(special[name] for name in _END_OF_TURN if name in special)]))


def reached_stop(tokenizer: Any, completion: Sequence[int], stop_sequences: Sequence[str]) -> str | None:
    """The stop sequence that the last token of ``completion`` completed, or None.

    A sequence may begin in an earlier token and the last token may go on beyond it; one completed earlier does not count again.
    """
    if not completion or not stop_sequences:
        return None
    before = tokenizer.decode(list(completion[:-1]))
    after = tokenizer.decode(list(completion))
    # The end of `before` can be a character still incomplete, which the last token completes.
    settled = next((at for at, (old, new) in enumerate(zip(before, after)) if old != new), min(len(before), len(after)))
    for sequence in stop_sequences:
        at = after.rfind(sequence)
        if at >= 0 and at + len(sequence) > settled:
            return sequence
    return None
