"""The grammar of the toy world: it writes documents with planted phenomena, and says where each is tested.

A document is an `Example`: a text, the phenomenon planted in it, the spans a model that has understood must predict, and its
surprisal under the grammar (the sum of -ln p over the choices that made it, in nats), against which a model's loss can be held.

>>> example = write("indirect_object", seed=5)
>>> example.answer in example.prompt
True
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from lensplorer.storyworld import held_out, words
from lensplorer.storyworld import templates as t

T = TypeVar("T")
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"


@dataclass(frozen=True)
class Example:
    """A document: `tests` are (start, end) character spans of `text` that follow from what stands before them."""

    phenomenon: str
    text: str
    tests: tuple[tuple[int, int], ...]
    nats: float

    @property
    def position(self) -> int:
        """Character at which the first tested answer starts."""
        return self.tests[0][0]

    @property
    def prompt(self) -> str:
        """The text before the first tested answer."""
        return self.text[: self.position]

    @property
    def answer(self) -> str:
        """The first tested answer, leading space included."""
        start, end = self.tests[0]
        return self.text[start:end]


@dataclass(frozen=True)
class World:
    """Which part of the world to write from: with the defaults, the part that training sees.

    wordings: training's, or a set of `held_out.SETS`, where a table that the set lacks is training's.
    """

    wordings: Literal["seen", "development", "held_out", "once_fresh", "fresh"] = "seen"
    held_out_names: bool = False
    held_out_sums: bool = False

    def pick(self, table: str) -> t.Wordings:
        """The wordings of a table."""
        return held_out.SETS.get(self.wordings, {}).get(table) or getattr(t, table)


class Draws:
    """Random choices that add up their surprisal."""

    def __init__(self, seed: int | str):
        self.random = random.Random(seed)
        self.nats = 0.0

    def choice(self, options: Sequence[T]) -> T:
        self.nats += math.log(len(options))
        return options[self.random.randrange(len(options))]

    def phrase(self, wordings: t.Wordings) -> str:
        """A sentence of the wordings: a usual one stands among them several times."""
        if isinstance(wordings, str):
            return wordings
        if isinstance(wordings, t.Product):
            return "".join(self.phrase(part) for part in wordings.parts)
        chosen = self.choice(wordings)
        self.nats -= math.log(wordings.count(chosen))
        return self.phrase(chosen)

    def wording(self, world: World, table: str) -> str:
        """A sentence of a table of the world; in training's, one that is held out is drawn again."""
        before = self.nats
        found = self.phrase(world.pick(table))
        while world.wordings == "seen" and t.skeleton(found) in HELD_OUT.get(table, ()):
            self.nats = before
            found = self.phrase(world.pick(table))
        return found

    def sample(self, options: Sequence[T], k: int) -> list[T]:
        self.nats += sum(math.log(len(options) - i) for i in range(k))
        return self.random.sample(options, k)

    def chance(self, p: float) -> bool:
        yes = self.random.random() < p
        self.nats -= math.log(p if yes else 1 - p)
        return yes

    def fill(self, template: str, **given: str) -> str:
        """The template with its slots filled: from `given`, else drawn from the slot's pool."""

        def slot(match: re.Match[str]) -> str:
            key = match.group(1)
            if key not in given:
                given[key] = self.choice(POOLS[key])
            return given[key]

        filled = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", re.sub(r"\{(\w+)\}", slot, template))
        return re.sub(r"(?<=[.?!] )[a-z]", lambda letter: letter[0].upper(), filled)


HELD_OUT = {  # table → what training never sees, in any of the sets
    table: {t.skeleton(wording) for wordings in held_out.SETS.values() for wording in wordings.get(table, ())}
    for table in {table for wordings in held_out.SETS.values() for table in wordings}
}
POOLS: dict[str, Sequence[str]] = {
    "A": words.NAMES, "B": words.NAMES, "N": words.NAMES, "M": words.NAMES, "P": words.PLACES, "O": words.THINGS, "T": words.COUNTED,
    "J": words.ADJECTIVES, "K": words.COLOURS, "G": words.ANIMALS, "C": tuple(words.CAPITALS), "Q": ("small", "big", "old", "new"),
    "U": ("bag", "box", "basket"),
}  # fmt: skip
SUMS = [(a, b) for a in range(1, 99) for b in range(1, 100 - a)]
SUMS_HELD_OUT = [(a, b) for a, b in SUMS if (min(a, b) * 31 + max(a, b) * 17) % 12 == 5]
SUMS_SEEN = sorted(set(SUMS) - set(SUMS_HELD_OUT))


@dataclass
class Page:
    """A document being written."""

    text: str = ""
    tests: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.text += text

    def sentence(self, text: str) -> None:
        """Adds a sentence after what is there, in the case its place asks for."""
        text = text[0].upper() + text[1:] if not self.text or self.text[-1] in '.!?"\n' else text
        self.text += (" " if self.text and self.text[-1] != "\n" else "") + text

    def test(self, text: str) -> None:
        self.tests.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def test_last(self, needle: str) -> None:
        """Marks the last occurrence of `needle` in what has been written, with the space before it, as tested."""
        start = self.text.rindex(needle)
        start -= start > 0 and self.text[start - 1] == " "
        self.tests.append((start, self.text.rindex(needle) + len(needle)))


def _name_pool(world: World) -> list[str]:
    held = set(words.HELD_OUT_NAMES)
    return sorted(held) if world.held_out_names else sorted(set(words.NAMES) - held)


def indirect_object(d: Draws, world: World, page: Page) -> None:
    """Two people, one of whom gives something to the other; either may have been named first."""
    a, b = d.sample(_name_pool(world), 2)
    giver, other = (a, b) if d.chance(0.5) else (b, a)
    first = d.wording(world, "GIVE_FIRST")
    second = d.wording(world, "GIVE_SECOND")
    page.sentence(d.fill(first, A=a, B=b))
    if first.endswith(".") and d.chance(0.25):
        page.sentence(d.fill(d.phrase(t.GIVE_BETWEEN)))
    if first.endswith(".") and d.chance(0.3):
        page.sentence(d.choice(t.GIVE_LINK))
    page.sentence(d.fill(second, S=giver))
    page.test(" " + other)
    page.add(d.choice(t.GIVE_END))


def pronoun(d: Draws, world: World, page: Page) -> None:
    """A person, and the pronoun that stands for them."""
    name = d.choice(words.NAMES)
    he, _, his = words.pronouns(name)
    page.sentence(d.fill(d.wording(world, "PRONOUN_FIRST"), N=name))
    link = d.wording(world, "PRONOUN_LINK")
    page.add(link.removesuffix(" {he}"))
    page.test(" " + he)
    last = d.choice(t.PRONOUN_LAST)
    page.add(" " + d.fill(last, his=his) + ".")


def name_reference(d: Draws, world: World, page: Page) -> None:
    """Two people told apart by their pronouns, one of whom is asked for."""
    woman, man = d.choice(words.WOMEN), d.choice(words.MEN)
    a, b = (woman, man) if d.chance(0.5) else (man, woman)
    first, second = d.sample(words.ADJECTIVES, 2)
    she_first = d.chance(0.5)
    subjects = ("She", "he") if she_first else ("He", "she")
    page.sentence(d.fill(d.wording(world, "REFERENCE_FIRST"), A=a, B=b))
    page.sentence(f"{subjects[0]} was {first} and {subjects[1]} was {second}.")
    asked_first = d.chance(0.5)
    last = d.wording(world, "REFERENCE_LAST")
    page.sentence(last.format(J=first if asked_first else second))
    page.test(" " + (woman if she_first == asked_first else man))
    page.add(".")


def repeat(d: Draws, world: World, page: Page) -> None:
    """A sequence of random words, said again two to four times; every word after the first copy is tested."""
    length = round(math.exp(d.random.uniform(math.log(4), math.log(100))))
    copies = min(d.random.randint(2, 4), 440 // length)
    sequence = [d.choice(words.REPEATED) for _ in range(length)]
    page.add("".join(" " + word for word in sequence))
    for _ in range(copies - 1):
        for word in sequence:
            page.test(" " + word)


def _facts(d: Draws, world: World, page: Page, facts: dict[str, str], core: str, key: str) -> None:
    subject = d.choice(tuple(facts))
    lead = d.wording(world, "LEADS")
    page.sentence(d.fill(lead + core, **{key: subject, "K": facts[subject]}))
    if core.index("{K}") > core.index("{" + key + "}"):
        page.test_last(facts[subject])


def capital(d: Draws, world: World, page: Page) -> None:
    """One to three capitals of real countries, each in a phrasing of its own."""
    while True:
        reversed_ = page.tests and d.chance(0.15)
        core = d.phrase(t.CAPITAL_REVERSED) if reversed_ else d.wording(world, "CAPITAL_CORES")
        _facts(d, world, page, words.CAPITALS, core, "C")
        if d.chance(0.5):
            return


def colour(d: Draws, world: World, page: Page) -> None:
    """What colour things have in the world."""
    _facts(d, world, page, words.COLOUR_OF, d.wording(world, "COLOUR_CORES"), "X")


def young(d: Draws, world: World, page: Page) -> None:
    """What the young of an animal are called; of the two, the second named is tested."""
    core = d.wording(world, "YOUNG_CORES")
    animal = d.choice(tuple(words.YOUNG))
    lead = d.wording(world, "LEADS")
    page.sentence(d.fill(lead + core, X=animal, K=words.YOUNG[animal]))
    page.test_last(words.YOUNG[animal] if core.index("{X}") < core.index("{K}") else animal)


def _problem(d: Draws, world: World, kind: str) -> tuple[str, str, int]:
    """A worded problem, the working, and the result."""
    name, things = d.choice(words.NAMES), d.choice(words.COUNTED)
    if kind == "sum":
        a, b = d.choice(SUMS_HELD_OUT if world.held_out_sums else SUMS_SEEN)
        event, working, result = d.wording(world, "SUM_EVENT"), f"{a} + {b} =", a + b
    elif kind == "double":
        a = b = d.choice(range(1, 50))
        event, working, result = d.wording(world, "DOUBLE_EVENT"), f"{a} * 2 =", 2 * a
    else:
        a = b = d.choice(range(2, 100, 2))
        event, working, result = d.wording(world, "HALF_EVENT"), f"{a} / 2 =", a // 2
    given = {"N": name, "T": things, "a": str(a), "b": str(b)}
    if "{M}" in event:  # drawn only where the text shows it, so that the surprisal is the text's
        given["M"] = d.choice([other for other in words.NAMES if other != name])
    parts = (d.wording(world, "SUM_OPEN"), event, d.wording(world, "QUESTIONS"))
    problem = Page()
    for part in parts:
        problem.sentence(d.fill(part, **given))
    return problem.text, working, result


def _worded(kind: str) -> Callable[[Draws, World, Page], None]:
    def write_problem(d: Draws, world: World, page: Page) -> None:
        problem, working, result = _problem(d, world, kind)
        page.add(f"{problem}\nReasoning:")
        page.test(f" {working} {result}")
        page.add("\nAnswer:")
        page.test(f" {result}")
        page.add(".")

    write_problem.__doc__ = f"A worded problem whose reasoning line takes a {kind}: the whole line and the answer are tested."
    return write_problem


def drill(d: Draws, world: World, page: Page) -> None:
    """Bare sums, doubles and halves; every result is tested."""
    page.add("Sums:")
    while True:
        if d.chance(0.7):
            a, b = d.choice(SUMS_HELD_OUT if world.held_out_sums else SUMS_SEEN)
            working, result = f" {a} + {b} =", a + b
        elif d.chance(0.5):
            a = d.choice(range(1, 50))
            working, result = f" {a} * 2 =", 2 * a
        else:
            a = d.choice(range(2, 100, 2))
            working, result = f" {a} / 2 =", a // 2
        page.add(working)
        page.test(f" {result}")
        if d.chance(0.12):
            return page.add(".")
        page.add(",")


def quote(d: Draws, world: World, page: Page) -> None:
    """A phrase that opens with a quotation mark or a bracket, and must close with its like."""
    for i in range(2):
        opening, closing = d.choice((('"', '"'), ("(", ")"), ("[", "]")))
        page.sentence(d.fill(d.wording(world, "SIGN_FIRST")).rstrip())
        page.add(" " + opening + d.fill(d.choice(t.SIGN_PHRASES)))
        page.test(closing)
        page.add(d.fill(d.choice(t.SIGN_LAST)))
        if i == 0 and d.chance(0.5):
            return


def bracket(d: Draws, world: World, page: Page) -> None:
    """Nested brackets: once the first has closed, all the others must, in order."""
    page.add("Brackets:")
    depth = d.choice(range(2, 7))
    kinds = [d.choice(("()", "[]", "{}", "<>")) for _ in range(depth)]
    page.add("".join(f" {kind[0]}" for kind in kinds))
    page.add(f" {d.choice(words.FRUITS)}")
    for kind in reversed(kinds):
        page.test(f" {kind[1]}")
    page.add(".")


def listing(d: Draws, world: World, page: Page) -> None:
    """A list that says how long it will be, and ends there."""
    count = d.choice(range(2, 7))
    pool = d.choice((words.FRUITS, words.COLOURS, words.ANIMALS))
    number = ("two", "three", "four", "five", "six")[count - 2]
    page.add(f"List of {number}: [" + ", ".join(d.sample(pool, count)))
    page.test("]")
    page.add(".")


def record(d: Draws, world: World, page: Page) -> None:
    """A person described in a sentence, then in JSON: the values are tested."""
    name, city = d.choice(words.NAMES), d.choice(list(words.CAPITALS.values()))
    colour_, age = d.choice(words.COLOURS), d.choice(range(6, 100))
    forms = (
        "{N} is {a} years old, lives in {L} and likes {K}.", "{N}, who is {a}, lives in {L} and likes {K}.",
        "{N} from {L} likes {K} and is {a}.",
    )  # fmt: skip
    page.add(d.choice(forms).format(N=name, a=age, L=city, K=colour_) + "\n")
    for key, value, mark in (("name", name, '{"'), ("age", age, ', "'), ("city", city, ', "'), ("likes", colour_, ', "')):
        page.add(f'{mark}{key}": ' + ('"' if isinstance(value, str) else ""))
        page.test(str(value))
        page.add('"' if isinstance(value, str) else "")
    page.test("}")
    json.loads(page.text[page.text.index("{") :])  # what is written is JSON, or this raises


def chat(d: Draws, world: World, page: Page) -> None:
    """A system turn that asks for a form, a question, and an answer in that form."""
    form = d.choice(("word", "sentence"))
    page.add(SYSTEM + d.choice(t.SYSTEMS[form]) + END)
    while True:
        kind = d.choice(("capital", "colour", "sum"))
        if kind == "sum":
            a, b = d.choice(SUMS_HELD_OUT if world.held_out_sums else SUMS_SEEN)
            question = d.choice((f"What is {a} + {b}?", f"Find {a} + {b}."))
            lead, answer, tail = f"{a} + {b} is ", str(a + b), ""
        elif kind == "capital":
            country = d.choice(tuple(words.CAPITALS))
            question = d.choice(("What is the capital of {C}?", "Which city is the capital of {C}?")).format(C=country)
            lead, answer, tail = f"The capital of {country} is ", words.CAPITALS[country], ""
        else:
            thing = d.choice(tuple(words.COLOUR_OF))
            question = d.choice(("What is the colour of {X}?", "Which colour has {X}?")).format(X=thing)
            lead, answer, tail = f"The colour of {thing} is ", words.COLOUR_OF[thing], ""
        page.add(f"{USER}{question}{END}{ASSISTANT}")
        if form == "word":
            page.test(answer)
        else:
            page.add(lead.rstrip())
            page.test(" " + answer)
            page.add("." + tail)
        page.add(END)
        if d.chance(0.6):
            return


def story(d: Draws, world: World, page: Page) -> None:
    """A short story about two people; the pronouns of the first part are tested."""
    a, b = d.sample(words.NAMES, 2)
    he, him, his = words.pronouns(a)
    girl = "girl" if a in words.WOMEN else "boy"
    given = {"A": a, "B": b, "he": he, "him": him, "his": his, "He": he.capitalize(), "g": girl}
    page.sentence(d.fill(d.choice(t.STORY_OPEN), **given))
    for template in d.sample(t.STORY_ALONE, 1 + d.chance(0.5)):
        page.sentence(d.fill(template, **given))
        if template.startswith("{He}"):
            page.test_last(he.capitalize())
    page.sentence(d.fill(d.choice(t.STORY_MEET), **given))
    for template in d.sample(t.STORY_PAIR, 1 + d.chance(0.5)):
        page.sentence(d.fill(template, **given))
        if d.chance(0.5):
            line, tag = d.fill(d.choice(t.SPEECH_LINES)), d.choice(t.SPEECH_TAGS).format(A=d.choice((a, b)))
            if d.chance(0.5):
                page.sentence(f'{tag[0].upper() + tag[1:]}, "{line}')
                page.test('"')
            else:
                page.sentence(f'"{line}')
                page.test('"')
                page.add(f" {tag}.")
    page.sentence(d.fill(d.choice(t.STORY_END), **given))


# Phenomenon → (how it is written, its weight among the documents). The weights give the shares of tokens named in the model card.
PHENOMENA: dict[str, tuple[Callable[[Draws, World, Page], None], float]] = {
    "indirect_object": (indirect_object, 6.5), "pronoun": (pronoun, 3.0), "name_reference": (name_reference, 1.4),
    "repeat": (repeat, 0.8), "capital": (capital, 3.5), "colour": (colour, 1.0), "young": (young, 0.5),
    "sum": (_worded("sum"), 1.7), "double": (_worded("double"), 0.8), "half": (_worded("half"), 0.8), "drill": (drill, 1.6),
    "quote": (quote, 1.8), "bracket": (bracket, 1.0), "list": (listing, 1.0), "json": (record, 0.6), "chat": (chat, 0.9),
    "story": (story, 1.0),
}  # fmt: skip


def shares(more: Mapping[str, float] | None = None) -> dict[str, float]:
    """Share of the documents that have each phenomenon: the weights, times what `more` says, made to sum to 1."""
    weights = {name: weight * (more or {}).get(name, 1.0) for name, (_, weight) in PHENOMENA.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def write(phenomenon: str, *, seed: int | str, world: World | None = None) -> Example:
    """One document with the phenomenon; the same seed writes the same document.

    Raises `KeyError` for a phenomenon that the world does not have.
    """
    writer, _ = PHENOMENA[phenomenon]
    draws, page = Draws(f"{phenomenon}:{seed}"), Page()
    writer(draws, world or World(), page)
    return Example(phenomenon, page.text, tuple(page.tests), draws.nats)


def corpus(*, seed: int, world: World | None = None, more: Mapping[str, float] | None = None) -> Iterator[Example]:
    """Documents without end, each phenomenon as often as its weight says, times what `more` says; `nats` includes the choice of phenomenon."""
    share = shares(more)
    order = random.Random(seed)
    index = 0
    while True:
        name = order.choices(list(share), list(share.values()))[0]
        example = write(name, seed=f"{seed}:{index}", world=world)
        yield Example(name, example.text, example.tests, example.nats - math.log(share[name]))
        index += 1
