"""Pairs of prompts that differ in one thing, token by token aligned, whose answers are known: what every causal method starts from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from lensplorer.storyworld import grammar, words


@dataclass(frozen=True)
class Case:
    """A clean and a corrupt prompt of as many tokens each. `right` and `wrong` are single tokens: the answers to the one and the other."""

    phenomenon: str
    clean: str
    corrupt: str
    right: str
    wrong: str


def _indirect_object(rng: random.Random) -> Case:
    a, b = rng.sample(words.NAMES, 2)
    giver, other = rng.sample((a, b), 2)
    place, thing = rng.choice(words.PLACES), rng.choice(words.THINGS)
    first = f"When {a} and {b} went to the {place},"
    return Case("indirect_object", f"{first} {giver} gave the {thing} to", f"{first} {other} gave the {thing} to", f" {other}", f" {giver}")


def _pronoun(rng: random.Random) -> Case:
    she, he = rng.choice(words.WOMEN), rng.choice(words.MEN)
    (name, right), (other, wrong) = rng.sample([(she, " she"), (he, " he")], 2)
    rest = f" went to the {rng.choice(words.PLACES)} because"
    return Case("pronoun", name + rest, other + rest, right, wrong)


def _repeat(rng: random.Random) -> Case:
    sequence = rng.sample(words.REPEATED, 13)
    right, wrong = sequence[6], sequence.pop()
    tail = "".join(f" {word}" for word in sequence[:6])
    clean, corrupt = ("".join(f" {word}" for word in [*sequence[:6], middle, *sequence[7:]]) for middle in (right, wrong))
    return Case("repeat", clean + tail, corrupt + tail, f" {right}", f" {wrong}")


def _capital(rng: random.Random) -> Case:
    (country, city), (other, wrong) = rng.sample(sorted(words.CAPITALS.items()), 2)
    return Case("capital", f"The capital of {country} is", f"The capital of {other} is", f" {city}", f" {wrong}")


def _colour(rng: random.Random) -> Case:
    things = sorted(thing for thing in words.COLOUR_OF if thing.startswith("a "))  # of one length
    while True:
        thing, other = rng.sample(things, 2)
        right, wrong = words.COLOUR_OF[thing], words.COLOUR_OF[other]
        if right != wrong:
            return Case("colour", f"The colour of {thing} is", f"The colour of {other} is", f" {right}", f" {wrong}")


def _sum(rng: random.Random) -> Case:
    while True:
        a, b, c = rng.randrange(11, 60), rng.randrange(11, 39), rng.randrange(11, 39)
        if (a + b) // 10 != (a + c) // 10:
            return Case("sum", f"Sums: {a} + {b} = ", f"Sums: {a} + {c} = ", str((a + b) // 10), str((a + c) // 10))


def _double(rng: random.Random) -> Case:
    while True:
        a, b = rng.randrange(11, 50), rng.randrange(11, 50)
        if a // 5 != b // 5:
            return Case("double", f"Sums: {a} * 2 = ", f"Sums: {b} * 2 = ", str(a // 5), str(b // 5))


def _half(rng: random.Random) -> Case:
    while True:
        a, b = rng.randrange(20, 100, 2), rng.randrange(20, 100, 2)
        if a // 20 != b // 20:
            return Case("half", f"Sums: {a} / 2 = ", f"Sums: {b} / 2 = ", str(a // 20), str(b // 20))


def _quote(rng: random.Random) -> Case:
    kind, other = rng.sample(('""', "()", "[]"), 2)
    text = f"{rng.choice(words.NAMES)} read a sign: %sno entry"
    return Case("quote", text % kind[0], text % other[0], kind[1], other[1])


def _bracket(rng: random.Random) -> Case:
    outer, other, inner = rng.sample(("()", "[]", "{}", "<>"), 3)
    text = f"Brackets: %s {inner[0]} {rng.choice(words.FRUITS)} {inner[1]}"
    return Case("bracket", text % outer[0], text % other[0], f" {outer[1]}", f" {other[1]}")


def _chat(rng: random.Random) -> Case:
    (country, city), (other, wrong) = rng.sample(sorted(words.CAPITALS.items()), 2)
    text = f"{grammar.SYSTEM}Answer with one word.{grammar.END}{grammar.USER}What is the capital of %s?{grammar.END}{grammar.ASSISTANT}"
    return Case("chat", text % country, text % other, city, wrong)


def _json(rng: random.Random) -> Case:
    (city, wrong), colour = rng.sample(sorted(words.CAPITALS.values()), 2), rng.choice(words.COLOURS)
    name, age = rng.choice(words.NAMES), rng.randrange(10, 99)
    text = f'{name} is {age} years old, lives in %s and likes {colour}.\n{{"name": "{name}", "age": {age}, "city": "'
    return Case("json", text % city, text % wrong, city, wrong)


_MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "indirect_object": _indirect_object, "pronoun": _pronoun, "repeat": _repeat, "capital": _capital,
    "colour": _colour, "sum": _sum, "double": _double, "half": _half, "quote": _quote, "bracket": _bracket, "chat": _chat, "json": _json,
}  # fmt: skip
PHENOMENA = tuple(_MAKERS)


def cases(phenomenon: str, *, count: int = 24, seed: int = 0) -> list[Case]:
    """Cases of one phenomenon, all of the same number of tokens; the same seed gives the same cases.

    Raises `ValueError` naming the phenomena when there is none of that name.

    >>> case = cases("capital", count=1)[0]
    >>> case.clean.startswith("The capital of"), case.right != case.wrong
    (True, True)
    """
    if phenomenon not in _MAKERS:
        raise ValueError(f"the toy world has no cases of {phenomenon!r}; there are {', '.join(PHENOMENA)}")
    rng = random.Random(f"{phenomenon}:cases:{seed}")
    return [_MAKERS[phenomenon](rng) for _ in range(count)]
