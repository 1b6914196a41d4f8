"""What a completion must match, and its compilation: the four kinds of constraint, and errors that say where and why.

llguidance reports an invalid regular expression with a drawing, a grammar with a line and column, a schema with a reason alone; each is
turned into a place in the text as the user wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from lensplorer.errors import SamplingError, check_unicode, did_you_mean

KINDS = ("multiple_choice", "regex", "grammar", "json_schema")
_ALIASES = {"choice": "multiple_choice", "choices": "multiple_choice", "regular_expression": "regex", "cfg": "grammar", "lark": "grammar"}
_ALIASES |= {"json": "json_schema", "schema": "json_schema"}

_LONGEST = 200_000  # characters of a constraint

#: Between two parts of a JSON text: nothing, a space, or a new line with its indentation. Without a bound, white space can go on for ever.
_JSON_SPACE = r"(\n {0,16}| )?"
_TOO_DEEP = "The JSON schema is nested too deeply: give one of fewer levels."


@dataclass(frozen=True)
class Constraint:
    """What a completion must match.

    >>> Constraint("multiple_choice", "Yes\\nNo"), Constraint.multiple_choice(["Yes", "No"]).choices
    (Constraint(kind='multiple_choice', text='["Yes", "No"]'), ['Yes', 'No'])

    Attributes:
        kind: ``"multiple_choice"``, ``"regex"`` (Rust's syntax, the whole completion must match), ``"grammar"`` (Lark, in llguidance's dialect,
            starting from the rule ``start``) or ``"json_schema"``.
        text: the expression, grammar or schema; of a multiple choice, the texts, one a line or as a JSON list (which it is kept as).

    Raises:
        SamplingError: an unknown kind, or no choice. Whether the text is valid is found by ``check`` or on first use.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        kind = _ALIASES.get(self.kind, self.kind) if isinstance(self.kind, str) else None
        if kind not in KINDS:
            raise SamplingError(f"Unknown kind of constraint {self.kind!r}.{did_you_mean(str(self.kind), KINDS)}")
        if not isinstance(self.text, str):
            raise SamplingError(f"A constraint's text is a str, got {type(self.text).__name__}: use Constraint.{kind}(...).")
        if len(self.text) > _LONGEST:
            raise SamplingError(f"The constraint has {len(self.text)} characters, and {_LONGEST} are the most.")
        check_unicode(self.text, "The constraint", SamplingError)
        object.__setattr__(self, "kind", kind)
        if kind == "multiple_choice":
            object.__setattr__(self, "text", json.dumps(_choices(self.text), ensure_ascii=False))

    @classmethod
    def multiple_choice(cls, choices: Sequence[str]) -> Constraint:
        """Exactly one of ``choices``."""
        if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
            raise SamplingError(f"multiple_choice takes a list of texts, got {choices!r}.")
        return cls("multiple_choice", json.dumps(list(choices), ensure_ascii=False))

    @classmethod
    def regex(cls, expression: str) -> Constraint:
        """A text that matches ``expression`` from beginning to end."""
        return cls("regex", expression)

    @classmethod
    def grammar(cls, lark: str) -> Constraint:
        """A text of the language of a Lark grammar."""
        return cls("grammar", lark)

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Constraint:
        """A JSON text that is valid under ``schema``; white space between its parts is bounded."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))

    @property
    def choices(self) -> list[str]:
        """The texts of a multiple choice."""
        return list(json.loads(self.text)) if self.kind == "multiple_choice" else []

    def check(self) -> None:
        """Compile it without a tokenizer.

        Raises:
            SamplingError: it is invalid (the message gives position and reason), or llguidance is not installed.
        """
        compiled_grammar(self)


@lru_cache(maxsize=32)
def compiled_grammar(constraint: Constraint) -> str:
    """llguidance's form of a constraint that it accepts."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise SamplingError("Constraints need llguidance: pip install 'lensplorer[constraints]'.") from error

    text = constraint.text
    if constraint.kind == "multiple_choice":
        grammar = LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in constraint.choices))
        refuse = _refuse_other
    elif constraint.kind == "regex":
        grammar, refuse = LLMatcher.grammar_from_regex(text), _refuse_regex
    elif constraint.kind == "grammar":
        grammar, refuse = LLMatcher.grammar_from_lark(text), _refuse_grammar
    else:
        grammar, refuse = _schema_grammar(_parse_schema(text)), _refuse_schema
    message = LLMatcher.validate_grammar(grammar)
    if message and not message.startswith("WARNING"):
        refuse(text, message)
    return grammar


def _refuse_other(text: str, message: str) -> NoReturn:
    raise SamplingError(f"The constraint {text!r} cannot be compiled: {message.strip()}.")


def _refuse_regex(text: str, message: str) -> NoReturn:
    """Rust's message draws the expression (new lines and slashes escaped) with a caret below the place."""
    caret = re.search(r"^ {4}( *)\^+$", message, re.MULTILINE)
    reason = re.search(r"^error: (.*)$", message, re.MULTILINE)
    if caret is None or reason is None:
        raise SamplingError(f"The regular expression {text!r} is invalid: {message.splitlines()[0]}.")
    drawn = len(caret.group(1))
    position = next((at for at in range(len(text) + 1) if len(_drawn_regex(text[:at])) >= drawn), len(text))
    raise SamplingError(f"The regular expression {text!r} is invalid at position {position}: {reason.group(1)}.")


def _drawn_regex(text: str) -> str:
    return re.sub(r"(?<!\\)/", r"\/", text.replace("\n", "\\n"))


def _refuse_grammar(text: str, message: str) -> NoReturn:
    place = re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", message)
    if place is None:
        raise SamplingError(f"The grammar is invalid: {message.splitlines()[0]}. It needs a rule 'start: ...'.")
    line, column, reason = place.groups()
    detail = re.search(r"^error: (.*)$", message, re.MULTILINE)
    reason = reason if detail is None else reason.removesuffix(" regex parse error:") + " " + detail.group(1)
    lines = text.splitlines()
    quoted = f" ({lines[int(line) - 1]!r})" if 0 < int(line) <= len(lines) else ""
    raise SamplingError(f"The grammar is invalid at line {line}, column {column}{quoted}: {reason}.")


def _parse_schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except RecursionError as error:
        raise SamplingError(_TOO_DEEP) from error
    except ValueError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise SamplingError(f"The JSON schema is not valid JSON at {place}.") from error
    if not isinstance(schema, dict):
        raise SamplingError(f"A JSON schema is an object ({{}} admits any JSON), got {text!r}.")
    return schema


def _schema_grammar(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_pattern": _JSON_SPACE})
    except (ValueError, RecursionError) as error:  # it reads any JSON but one that is too deep
        raise SamplingError(_TOO_DEEP) from error


def _refuse_schema(text: str, message: str) -> NoReturn:
    path, reason = _deepest_invalid(_parse_schema(text), message)
    raise SamplingError(f"The JSON schema is invalid at {'#' + path!r}: {reason}.")


def _deepest_invalid(root: dict[str, Any], message: str) -> tuple[str, str]:
    """llguidance gives a reason and no place: the smallest part of the schema that is invalid by itself is the place."""
    from llguidance import LLMatcher

    definitions: dict[str, Any] = {key: root[key] for key in ("$defs", "definitions") if key in root}

    def search(schema: dict[str, Any], path: str, message: str) -> tuple[str, str]:
        for key, part in _parts(schema):
            if LLMatcher.validate_grammar(_schema_grammar({**definitions, **part})) == message:  # another message is an effect of standing alone
                return search(part, f"{path}/{key}", message)
        return path, re.sub(r"^regex parse error: .* error:", "invalid regex:", " ".join(message.split()))

    return search(root, "", message)


def _parts(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The subschemas directly within a schema, by JSON pointer."""
    parts: list[tuple[str, Any]] = []
    for key in ("$defs", "definitions", "properties", "patternProperties"):
        named = schema.get(key)
        parts += [(f"{key}/{name}", part) for name, part in named.items()] if isinstance(named, dict) else []
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        listed = schema.get(key)
        parts += [(f"{key}/{index}", part) for index, part in enumerate(listed)] if isinstance(listed, list) else []
    parts += [(key, schema[key]) for key in ("items", "additionalProperties", "not", "if", "then", "else", "contains") if key in schema]
    return [(key, part) for key, part in parts if isinstance(part, dict)]


def _choices(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        choices = text.splitlines()
    choices = list(dict.fromkeys(choice for choice in choices if choice))
    if not choices:
        raise SamplingError("A multiple choice needs at least one text that is not empty, one a line.")
    return choices
