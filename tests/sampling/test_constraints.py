"""Constraints: every random completion matches, stepping back is exact, and an invalid one says where and why."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensplorer.errors import SamplingError
from lensplorer.sampling.constraints import CompiledConstraint, compile_constraint
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.stopping import end_ids
from lensplorer.tokens import token_bytes
from tests import tiny

CHOICES = ["Yes", "Yes, please", "No", 'a "quoted"\nline', "日本 🙂"]
REGEX = r"(the|a) (cat|dog) ran [0-9]{1,3}(\.[0-9]+?)?(é|🙂)*!"
GRAMMAR = """
start: sum
sum: product (("+" | "-") product)?
product: atom ("*" atom)?
atom: /[0-9]{1,2}/ | "(" product ")"
"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-c]{1,3}$"}},
}
CONSTRAINTS = {
    "multiple_choice": Constraint.multiple_choice(CHOICES),
    "regex": Constraint.regex(REGEX),
    "grammar": Constraint.grammar(GRAMMAR),
    "json_schema": Constraint.json_schema(SCHEMA),
}


def parse_sum(text: str) -> bool:
    """The grammar by hand: a recursive-descent parser of its own."""

    def atom(at: int) -> int:
        if text[at : at + 1] == "(":
            at = product(at + 1)
            return at + 1 if text[at : at + 1] == ")" else 10**6
        digits = re.match(r"[0-9]{1,2}", text[at:])
        return at + digits.end() if digits else 10**6

    def product(at: int) -> int:
        at = atom(at)
        return atom(at + 1) if text[at : at + 1] == "*" else at

    at = product(0)
    if text[at : at + 1] in ("+", "-"):
        at = product(at + 1)
    return at == len(text)


def matches(kind: str, text: str) -> bool:
    if kind == "multiple_choice":
        return text in CHOICES
    if kind == "regex":
        return re.fullmatch(REGEX, text) is not None
    if kind == "grammar":
        return parse_sum(text)
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


def compiled(kind: str) -> CompiledConstraint:
    return compile_constraint(CONSTRAINTS[kind], tiny.tokenizer(), tiny.D_VOCAB)


def walk(constraint: CompiledConstraint, rng: np.random.Generator, longest: int = 400) -> list[int]:
    """Any allowed token at each step, each as likely: much wilder than a trained model."""
    ids: list[int] = []
    while len(ids) < longest:
        ids.append(int(rng.choice(np.flatnonzero(constraint.allowed(ids)))))
        if ids[-1] in end_ids(tiny.tokenizer()) or constraint.is_complete(ids):
            return ids
    raise AssertionError(f"no end after {longest} tokens")


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_200_random_completions_match(kind):
    constraint, rng, texts = compiled(kind), np.random.default_rng(0), set()
    for _ in range(200):
        ids = walk(constraint, rng)
        assert constraint.may_end(ids)
        text = tiny.tokenizer().decode(ids, skip_special_tokens=True)
        assert matches(kind, text), text
        texts.add(text)
    assert len(texts) >= 5


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_every_mask_is_that_of_a_fresh_matcher_wherever_one_comes_from(kind):
    shared, rng = CompiledConstraint(CONSTRAINTS[kind], tiny.tokenizer(), tiny.D_VOCAB), np.random.default_rng(1)
    walks = [walk(shared, rng) for _ in range(4)]
    paths = [ids[: rng.integers(len(ids) + 1)] for ids in walks for _ in range(6)]
    rng.shuffle(paths)  # type: ignore[arg-type]
    for path in paths:
        fresh = CompiledConstraint(CONSTRAINTS[kind], tiny.tokenizer(), tiny.D_VOCAB)
        assert np.array_equal(shared.allowed(path), fresh.allowed(path))
        assert shared.is_complete(path) == fresh.is_complete(path) and shared.may_end(path) == fresh.may_end(path)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(CONSTRAINTS)), st.integers(0, 10**6), st.integers(1, 40))
def test_rolling_back_and_replaying_gives_the_same_masks(kind, seed, back):
    constraint = compiled(kind)
    ids = walk(constraint, np.random.default_rng(seed))
    masks = [constraint.allowed(ids[:at]) for at in range(len(ids) + 1)]
    back = min(back, len(ids))
    constraint.allowed(ids[: len(ids) - back])
    assert all(np.array_equal(constraint.allowed(ids[:at]), masks[at]) for at in range(len(ids) - back, len(ids) + 1))


def test_the_mask_is_the_definition_for_choices():
    """Slow reference: a token may follow when some choice begins with the completion and it."""
    constraint, tokenizer = compiled("multiple_choice"), tiny.tokenizer()
    goals = [choice.encode() for choice in CHOICES]
    for prefix in ("", "Y", "Yes", "Yes,", "日", 'a "quo'):
        ids = tokenizer.encode(prefix)
        expected = np.zeros(tiny.D_VOCAB, dtype=bool)
        for token in range(tiny.D_VOCAB):
            piece = token_bytes(tokenizer, token)
            expected[token] = bool(piece) and any(goal.startswith(prefix.encode() + piece) for goal in goals)
        expected[list(end_ids(tokenizer))] = prefix in CHOICES
        assert np.array_equal(constraint.allowed(ids), expected)


def test_fitting_ending_and_completion():
    tokenizer = tiny.tokenizer()
    constraint = compile_constraint(Constraint.regex("ab*c?"), tokenizer, tiny.D_VOCAB)
    end = tokenizer.eos_token_id
    ids = {text: tokenizer.encode(text) for text in ("abbx", "abb", "abc", "")}
    assert constraint.fits(ids["abbx"]) == 3
    assert [constraint.may_end(ids[text]) for text in ("", "abb", "abc")] == [False, True, True]
    assert [constraint.is_complete(ids[text]) for text in ("", "abb", "abc")] == [False, False, True]
    assert constraint.may_end([*ids["abb"], end]) and constraint.is_complete([*ids["abb"], end])
    assert not constraint.allowed([*ids["abb"], end]).any()
    assert constraint.fits([end]) == 0 and constraint.fits([*ids["abc"], end, ids["abc"][0]]) == len(ids["abc"]) + 1
    with pytest.raises(SamplingError, match=r"Token 4 of the completion, 'x'.*after 'abb'.*'c'"):
        constraint.require(ids["abbx"])
    with pytest.raises(SamplingError, match="complete"):
        constraint.require([*ids["abc"], end, end])
    with pytest.raises(SamplingError, match="does not fit"):
        constraint.allowed(ids["abbx"])


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(ab", r"position 0: unclosed group"),
        ("regex", "x\n(y\nz", r"position 2: unclosed group"),
        ("regex", "a/b(", r"position 3: unclosed group"),
        ("regex", r"(a)\1", r"position 3: backreferences"),
        ("regex", "[z-a]", r"position 1: invalid character class"),
        ("regex", "é[", r"position 1: "),
        ("grammar", "start: b\nb: foo", r"line 2, column \d+ \('b: foo'\): unknown name: \"foo\""),
        ("grammar", 'start: "a" (\n', r"line 1, column 13"),
        ("grammar", "start: /a(/", r"line 1, column 8.*unclosed group"),
        ("grammar", 'foo: "a"', r"no start rule"),
        ("grammar", "", r"[Ee]mpty"),
        ("json_schema", '{"type":', r"line 1, column 9"),
        ("json_schema", "[]", r"object"),
        ("json_schema", "false", r"object"),
        ("json_schema", '{"properties": {"x": {"items": {"type": "strin"}}}}', r"'#/properties/x/items': Invalid type: strin"),
        ("json_schema", '{"properties": {"x": {"$ref": "#/$defs/y"}}, "$defs": {"y": {"type": "no"}}}', r"'#/\$defs/y': Invalid type: no"),
        ("json_schema", '{"properties": {"x": {"type": "string", "pattern": "(a"}}}', r"'#/properties/x': invalid regex: unclosed group"),
        ("json_schema", '{"$ref": "#/x"}', r"'#': Pointer"),
    ],
)
def test_an_invalid_constraint_says_where_and_why(kind, text, message):
    with pytest.raises(SamplingError, match=message):
        Constraint(kind, text).check()


def test_bad_constraints_and_other_spellings():
    with pytest.raises(SamplingError, match="'regex'"):
        Constraint("regexp", "a")
    with pytest.raises(SamplingError, match="at least one"):
        Constraint("multiple_choice", "\n\n")
    with pytest.raises(SamplingError, match=r"Constraint\.json_schema"):
        Constraint("json_schema", {"type": "string"})  # type: ignore[arg-type]
    with pytest.raises(SamplingError, match="list"):
        Constraint.multiple_choice("Yes")
    assert Constraint("cfg", "x").kind == "grammar" and Constraint("choice", "a\nb\na\n") == Constraint.multiple_choice(["a", "b"])
    assert Constraint(**vars(CONSTRAINTS["multiple_choice"])) == CONSTRAINTS["multiple_choice"]


def test_what_nothing_can_match_is_refused():
    with pytest.raises(SamplingError, match="admits no token here"):
        compile_constraint(Constraint.regex(r"[^\s\S]"), tiny.tokenizer(), tiny.D_VOCAB).allowed([])


def test_without_llguidance_the_error_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(SamplingError, match=r"pip install 'lensplorer\[constraints\]'"):
        Constraint.regex("not compiled before").check()


def unigram() -> Any:
    """A SentencePiece-like tokenizer: unigram pieces with ▁ for spaces and single bytes to fall back on."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁cat", "▁", "▁a", *"abcdefghijklmnopqrstuvwxyz!"]
    backend = Tokenizer(models.Unigram([(piece, -float(at)) for at, piece in enumerate(pieces)], unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


class Slow:
    """A tokenizer without a Rust backend: llguidance must be told the bytes of each token."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast
        self.backend_tokenizer = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __len__(self) -> int:
        return len(self._fast)


@pytest.mark.parametrize("make", [unigram, lambda: Slow(unigram())])
def test_other_tokenizers(make):
    tokenizer = make()
    d_vocab = len(tokenizer) + 5  # padded
    constraint = compile_constraint(Constraint.regex(" the cat(é|🙂)*!"), tokenizer, d_vocab)
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids: list[int] = []
        while not constraint.is_complete(ids):
            ids.append(int(rng.choice(np.flatnonzero(constraint.allowed(ids)))))
        body = [token for token in ids if token not in end_ids(tokenizer)]
        assert re.fullmatch(" the cat(é|🙂)*!", b"".join(token_bytes(tokenizer, token) for token in body).decode())
