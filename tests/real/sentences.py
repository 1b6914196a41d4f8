"""Sentences whose last word is one of two names, written before any was shown to a model: only one of the two makes sense."""

from __future__ import annotations

NAMES = (
    ("Mary", "John"), ("Alice", "Tom"), ("Sarah", "David"), ("Emma", "James"), ("Anna", "Peter"), ("Laura", "Mark"), ("Kate", "Paul"),
    ("Lucy", "Simon"), ("Rachel", "Adam"), ("Julia", "Daniel"), ("Susan", "Robert"), ("Jane", "Michael"), ("Linda", "George"),
    ("Helen", "Frank"), ("Lisa", "Kevin"), ("Maria", "Carlos"), ("Amy", "Brian"), ("Karen", "Steven"), ("Grace", "Henry"), ("Diana", "Charles"),
)  # fmt: skip
PLACES = ("store", "park", "school", "library", "market", "beach", "office", "garden", "station", "museum", "restaurant")
THINGS = ("drink", "book", "letter", "ring", "flower", "ball", "key", "map", "cake", "basket", "coat", "picture", "gift")
#: {a} and {b} are both there; {giver} is one of them, and the answer the other
WORDINGS = (
    "When {a} and {b} went to the {place}, {giver} gave a {thing} to",
    "After {a} and {b} left the {place}, {giver} handed a {thing} to",
    "{a} and {b} were working at the {place}. {giver} decided to give a {thing} to",
    "While {a} and {b} were walking to the {place}, {giver} offered a {thing} to",
    "Yesterday {a} and {b} met at the {place}, and {giver} showed a {thing} to",
    "Then, {a} and {b} had a long talk in the {place}, and afterwards {giver} passed a {thing} to",
    "{a} and {b} are friends. At the {place}, {giver} bought a {thing} for",
    "Before {a} and {b} said goodbye at the {place}, {giver} lent a {thing} to",
    "At the {place}, {a} sat next to {b}. Without a word {giver} gave the {thing} to",
    "{a} came to the {place} with {b}. Later that day {giver} brought a {thing} to",
)


def sentences(count: int) -> list[tuple[str, str, str]]:
    """(sentence, the right name, the other), each with another combination; each name is as often the first as the second, and the giver.

    >>> sentences(2)[0]
    ('When Mary and John went to the store, Mary gave a drink to', ' John', ' Mary')
    """
    made = []
    for at in range(count):
        names = NAMES[at % len(NAMES)]
        turn = at // len(NAMES)  # every pair comes again in another wording
        a, b = names if turn % 2 == 0 else names[::-1]
        giver, other = (b, a) if (at + turn // 2) % 3 else (a, b)
        wording = WORDINGS[(at + turn) % len(WORDINGS)]
        place, thing = PLACES[at % len(PLACES)], THINGS[at % len(THINGS)]
        made.append((wording.format(a=a, b=b, giver=giver, place=place, thing=thing), f" {other}", f" {giver}"))
    return made
