"""Tokens as a person reads them, and prompts as a model is fed them.

Three texts of a token are kept apart: its *exact* text (``token_text``: what it adds to the decoded string, leading space included, or its
bytes where they are not whole characters), its *visible* text (``visible``: spaces, newlines and control characters drawn), and its id.
"""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np

from lensplorer.errors import PromptError, TokenError, first_line

#: A prompt: text, token ids (a list, an array or a tensor of shape [position] or [1, position]), or chat messages.
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]] | Any

_TEMPLATE_SECONDS = 10.0
_MOST_CHARACTERS = 50_000_000

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DRAWN = {" ": "␠", "\n": "⏎", "\r": "␍", "\t": "⇥"}
_TEXTS: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()  # tokenizer → id → exact text
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"}  # control, format (zero width, bidi), private, unassigned, separators


def visible(text: str) -> str:
    """``text`` with everything invisible drawn; the empty text is ``∅``.

    >>> visible(" cat\\n"), visible(""), visible("a\\u200bb")
    ('␠cat⏎', '∅', 'a⟨U+200B⟩b')
    """
    return "".join(_visible_character(character) for character in text) or "∅"


def _visible_character(character: str) -> str:
    if character in _DRAWN:
        return _DRAWN[character]
    if unicodedata.category(character) in _HIDDEN_CATEGORIES:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def token_text(tokenizer: Any, token_id: int) -> str:
    """The exact text of one token: what it adds to the decoded string.

    Bytes that are not a whole UTF-8 character are written ``⟨E2⟩⟨82⟩``; an id that the tokenizer does not know (a padded vocabulary)
    is written ``⟨id 50300⟩``. Works for byte-level BPE (GPT-2, Llama 3, Qwen) and for SentencePiece pieces (Llama 2, Gemma).
    """
    piece = tokenizer.convert_ids_to_tokens(int(token_id))
    if piece is None:
        return f"⟨id {int(token_id)}⟩"
    if int(token_id) in tokenizer.added_tokens_decoder:
        return str(piece)
    return _decode(_piece_bytes(tokenizer, piece))


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """``token_text`` of each id, remembered for as long as the tokenizer lives."""
    known = _TEXTS.setdefault(tokenizer, {})
    for token_id in token_ids:
        if token_id not in known:
            known[token_id] = token_text(tokenizer, token_id)
    return [known[token_id] for token_id in token_ids]


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """The bytes that one token adds to the text; none for a special token or an id that the tokenizer does not know."""
    piece = tokenizer.convert_ids_to_tokens(int(token_id))
    if piece is None or int(token_id) in tokenizer.all_special_ids:
        return b""
    if int(token_id) in tokenizer.added_tokens_decoder:
        return str(piece).encode("utf-8")
    return _piece_bytes(tokenizer, piece)


def _piece_bytes(tokenizer: Any, piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte.group(1), 16)])
    if _is_byte_level(tokenizer):
        alphabet = _byte_of_character()
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
    return piece.replace("▁", " ").encode("utf-8", errors="surrogatepass")


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _decode(raw: bytes) -> str:
    """UTF-8 text, with each byte that is not part of a whole character written as ⟨hex⟩."""
    escaped = raw.decode("utf-8", errors="surrogateescape")
    return "".join(f"⟨{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in escaped)


def resolve_token(tokenizer: Any, token: str | int, *, d_vocab: int | None = None) -> int:
    """The id of ``token``, which must be exactly one token; a leading space is significant.

    Args:
        tokenizer: a Hugging Face tokenizer.
        token: the token's exact text, or its id.
        d_vocab: the model's vocabulary size, which bounds an id.

    Raises:
        TokenError: the text is no token or several (the message lists them and near alternatives), or the id is out of range.
    """
    if isinstance(token, (int, np.integer)) and not isinstance(token, bool):
        size = d_vocab if d_vocab is not None else len(tokenizer)
        if not 0 <= int(token) < size:
            raise TokenError(f"Token id {int(token)} is outside the vocabulary: expected 0 to {size - 1}.")
        return int(token)
    if not isinstance(token, str):
        raise TokenError(f"A token is a text or an id, not {type(token).__name__}: {token!r}.")
    if _SURROGATE.search(token):
        raise TokenError(f"{token!r} has half a character (a lone surrogate), which no token has.")
    found = _single_token(tokenizer, token)
    if found is not None:
        return resolve_token(tokenizer, found, d_vocab=d_vocab)  # a tokenizer may know more than its model
    alternatives = [
        other
        for other in (" " + token, token.strip(" "), token.lower(), token.capitalize(), " " + token.strip().capitalize())
        if other != token and other and _single_token(tokenizer, other) is not None
    ]
    pieces = token_texts(tokenizer, tokenizer.encode(token, add_special_tokens=False))
    expected = f"{token!r} is {len(pieces)} tokens ({', '.join(map(repr, pieces))})" if pieces else "The empty text is no token"
    hint = f" One token each: {', '.join(map(repr, dict.fromkeys(alternatives)))}." if alternatives else ""
    raise TokenError(f"{expected}: exactly one is expected, and a leading space counts.{hint} An id works too.")


def _single_token(tokenizer: Any, text: str) -> int | None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and token_text(tokenizer, ids[0]) == text:
        return int(ids[0])
    # SentencePiece adds a space in front of what it encodes: look the exact piece up instead.
    candidate = tokenizer.convert_tokens_to_ids(text.replace(" ", "▁"))
    if isinstance(candidate, int) and candidate != tokenizer.unk_token_id and token_text(tokenizer, candidate) == text:
        return candidate
    return None


def encode_prompt(tokenizer: Any, prompt: Prompt, *, prepend_bos: bool | None, default_bos: bool, d_vocab: int) -> list[int]:
    """The ids that a model is fed for ``prompt``; never empty, and BOS never doubled.

    Text is tokenised without the tokenizer's own specials; BOS is put in front when ``prepend_bos`` (None: ``default_bos``) and not there
    already. Ids and chat messages (through the model's chat template) are fed as they are unless ``prepend_bos=True``.

    Raises:
        PromptError: the prompt is empty, has an id outside the vocabulary, or is chat for a model without a template.
    """
    if isinstance(prompt, str):
        ids = _encode_text(tokenizer, prompt)
        bos_wanted = default_bos if prepend_bos is None else prepend_bos
    elif _is_chat(prompt):
        ids = _encode_chat(tokenizer, cast(Sequence[Mapping[str, str]], prompt))
        bos_wanted = bool(prepend_bos)
    else:
        ids = _as_ids(prompt)
        bos_wanted = bool(prepend_bos)
    if bos_wanted:
        bos = tokenizer.bos_token_id if tokenizer is not None else None
        if bos is None:
            raise PromptError("prepend_bos=True, but this model's tokenizer has no beginning-of-text token; use prepend_bos=False.")
        ids = ids if ids[:1] == [bos] else [bos, *ids]
    if not ids:
        raise PromptError("The prompt is empty: give at least one token of text.")
    return _within(ids, d_vocab)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(message, Mapping) for message in prompt)


def _encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    for message in messages:
        if not {"role", "content"} <= set(message):
            raise PromptError(f"A chat message needs 'role' and 'content', got {dict(message)!r}.")
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError("This model has no chat template (it is a base model): give the prompt as plain text.")
    try:
        with _stopped_after(_TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program
        roles = ", ".join(str(message["role"]) for message in messages)
        raise PromptError(f"The model's chat template refuses these messages ({roles}): {first_line(error)}") from error
    return _encode_text(tokenizer, text)


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Python code in here that goes on for longer is stopped by a ``TimeoutError``: it is asked at each of its lines."""
    end = time.monotonic() + seconds

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it did not end within {seconds:g} s")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without the tokenizer's own specials.

    Raises:
        PromptError: it holds half a character, or is longer than any context.
    """
    if len(text) > _MOST_CHARACTERS:
        raise PromptError(f"The text has {len(text):,} characters: expected at most {_MOST_CHARACTERS:,}. Shorten it.")
    half = _SURROGATE.search(text)
    if half is not None:
        raise PromptError(f"The text has half a character (a lone surrogate) at {half.start()}: it cannot be encoded. Leave it out.")
    return list(tokenizer.encode(text, add_special_tokens=False))


def _within(ids: list[int], d_vocab: int) -> list[int]:
    """The ids, all of which the model has: a tokenizer may know more than its model."""
    outside = next((token_id for token_id in ids if not 0 <= token_id < d_vocab), None)
    if outside is not None:
        raise PromptError(f"Token id {outside} is outside the vocabulary: expected 0 to {d_vocab - 1}.")
    return ids


def _as_ids(prompt: Any) -> list[int]:
    array = np.asarray(prompt)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.size == 0:
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise PromptError(f"A prompt is a text, token ids of shape [position], or chat messages, not {type(prompt).__name__} of shape {array.shape}.")
    return [int(token_id) for token_id in array]
