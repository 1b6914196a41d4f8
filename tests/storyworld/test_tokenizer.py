"""The shipped tokenizer: any text comes back, words and digits are single tokens, documents begin with BOS, chat renders."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensplorer.storyworld import MODEL_NAMES, grammar, model_path, words
from lensplorer.storyworld.tokenizer import BOS, SPECIALS, build


def load(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path(name))


TOKENIZER = load("storyworld")


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=400, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("text", ["", " ", "\n\n\t x", "naïve 東京 😀👩‍👩‍👧", "a\u0301 \u202e \x00\x7f", "1234567890", " . , 's"])
def test_awkward_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == text


def test_words_of_the_world_are_single_tokens() -> None:
    for word in words.REPEATED:
        assert len(TOKENIZER(" " + word, add_special_tokens=False)["input_ids"]) == 1, word
    for name in words.NAMES:
        assert len(TOKENIZER(name, add_special_tokens=False)["input_ids"]) == 1, name
    assert len(TOKENIZER("2026", add_special_tokens=False)["input_ids"]) == 4


def test_a_document_begins_with_bos_once() -> None:
    ids = TOKENIZER("Mary")["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id == TOKENIZER.eos_token_id == 0
    assert ids.count(0) == 1
    assert [TOKENIZER.convert_tokens_to_ids(special) for special in SPECIALS] == list(range(len(SPECIALS)))


def test_chat_renders_as_the_grammar_writes_it() -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 2 + 3?"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{BOS}{grammar.SYSTEM}Be short.{grammar.END}{grammar.USER}What is 2 + 3?{grammar.END}{grammar.ASSISTANT}"
    ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == TOKENIZER(text.removeprefix(BOS))["input_ids"]


def test_tested_spans_begin_and_end_with_tokens() -> None:
    from lensplorer.storyworld.evaluate import spans_in_tokens

    for phenomenon in grammar.PHENOMENA:
        for seed in range(40):
            example = grammar.write(phenomenon, seed=seed)
            ids = TOKENIZER(example.text)["input_ids"]
            for (start, end), (first, last) in zip(example.tests, spans_in_tokens(TOKENIZER, example), strict=True):
                assert TOKENIZER.decode(ids[first:last]) == example.text[start:end]


def test_both_models_share_it() -> None:
    assert load(MODEL_NAMES[1]).get_vocab() == TOKENIZER.get_vocab()


def test_the_grammar_still_gives_the_shipped_vocabulary() -> None:
    """Wordings may change, but only in known words: else the weights no longer fit what training would build."""
    assert build().get_vocab() == TOKENIZER.get_vocab()
