"""Token text is exact, what is drawn is visible, and a token is exactly one token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensplorer.errors import TokenError
from lensplorer.tokens import resolve_token, token_text, token_texts, visible
from tests import tiny


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer in the manner of Llama 2: ▁ for spaces, a space put in front, bytes where no piece fits."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁c", "▁cat", "c", "a", "t", "ca", "cat"]
    merges = [("▁", "c"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize(
    "text, drawn",
    [
        (" the", "␠the"),
        ("\n\t\r", "⏎⇥␍"),
        ("", "∅"),
        ("<b>$$x$$", "<b>$$x$$"),
        ("a\u202eb", "a⟨U+202E⟩b"),  # a right-to-left override must not turn the page around
        ("\x00", "⟨U+0000⟩"),
        ("日本", "日本"),
    ],
)
def test_visible(text, drawn):
    assert visible(text) == drawn


@given(st.text(max_size=30))
def test_texts_of_whole_characters_join_to_the_prompt(text):
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(tokenizer, ids)
    if not any("⟨" in piece for piece in texts) and not any(special in text for special in tokenizer.all_special_tokens):
        assert "".join(texts) == text


def test_part_of_a_character_is_shown_as_bytes():
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode("€", add_special_tokens=False)  # not in the corpus: three bytes
    assert token_texts(tokenizer, ids) == ["⟨E2⟩", "⟨82⟩", "⟨AC⟩"]


def test_specials_and_unknown_ids():
    tokenizer = tiny.tokenizer()
    assert token_text(tokenizer, 0) == "<|endoftext|>"
    assert token_text(tokenizer, 319) == "⟨id 319⟩" if len(tokenizer) <= 319 else True
    assert token_text(tokenizer, 5000) == "⟨id 5000⟩"


def test_sentencepiece_keeps_its_leading_space(sentencepiece):
    cat = sentencepiece.convert_tokens_to_ids("▁cat")
    assert token_text(sentencepiece, cat) == " cat"
    assert token_text(sentencepiece, sentencepiece.convert_tokens_to_ids("<0xE2>")) == "⟨E2⟩"
    assert resolve_token(sentencepiece, " cat") == cat
    assert resolve_token(sentencepiece, "cat") == sentencepiece.convert_tokens_to_ids("cat")  # encode() would give "▁cat"


def test_resolve_takes_text_and_ids():
    tokenizer = tiny.tokenizer()
    cat = resolve_token(tokenizer, " cat")
    assert token_text(tokenizer, cat) == " cat" and resolve_token(tokenizer, cat) == cat
    assert resolve_token(tokenizer, "<|endoftext|>") == 0


@pytest.mark.parametrize(
    "token, message",
    [
        ("dog", r"'dog' is 2 tokens \('do', 'g'\): exactly one is expected, and a leading space counts"),
        ("book", r"One token each: ' book'"),
        ("", "The empty text is no token"),
        (320, "Token id 320 is outside the vocabulary: expected 0 to 319"),
        (-1, "outside the vocabulary"),
        (1.5, "not float"),
        (True, "not bool"),
    ],
)
def test_what_is_not_one_token_is_refused(token, message):
    with pytest.raises(TokenError, match=message):
        resolve_token(tiny.tokenizer(), token, d_vocab=tiny.D_VOCAB)
