"""200 completions of the built-in model under each kind of constraint, sampled hot through a session: all of them match."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.session import Session

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
CHOICES = [" yes", " yes it is", " no", " é🙂"]
REGEX = r" (one|two) [a-z]{1,4}(, [a-z]{2})?\."
GRAMMAR = 'start: NUMBER (("+" | "*") NUMBER)~0..2\nNUMBER: /[0-9]{1,2}/'


def is_valid(text: str) -> bool:
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


CASES = {
    "multiple_choice": (Constraint.multiple_choice(CHOICES), lambda text: text in CHOICES),
    "regex": (Constraint.regex(REGEX), lambda text: re.fullmatch(REGEX, text) is not None),
    "grammar": (Constraint.grammar(GRAMMAR), lambda text: re.fullmatch(r"[0-9]{1,2}([+*][0-9]{1,2}){0,2}", text) is not None),
    "json_schema": (Constraint.json_schema(SCHEMA), is_valid),
}


@pytest.mark.parametrize("kind", CASES)
def test_200_completions_match(kind, storyworld):
    constraint, matches = CASES[kind]
    session = Session(storyworld, "Once upon a time", reads=())
    session.constraint = constraint
    n, said = len(session.ids), set()
    for seed in range(200):
        session.decoding = DecodingParams(temperature=2.0, top_p=1.0, repetition_penalty=1.0, seed=seed)
        reasons = [step.stop_reason for step in session.play(100)]
        assert reasons[-1] in ("constraint_complete", "end_of_text")
        text = storyworld.tokenizer.decode(session.ids[n:], skip_special_tokens=True)
        assert matches(text), text
        said.add(text)
        session.reset()
    assert len(said) >= 3
