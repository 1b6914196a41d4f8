"""The wordings of the toy world. Every sentence is a first part times a second part, so that a model cannot learn whole sentences.

These are the wordings that training sees; those it never sees are in `held_out`. A model that is shown a hundred sentences learns the
sentences: only among thousands, made of parts, is what they say the shorter thing to learn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Product:
    """Each of the first parts with each of the second, and so on.

    >>> list(Product(("a ", "the "), ("cat", "dog")))
    ['a cat', 'a dog', 'the cat', 'the dog']
    """

    parts: tuple[tuple[str, ...], ...]

    def __init__(self, *parts: tuple[str, ...]):
        object.__setattr__(self, "parts", parts)

    def __iter__(self) -> Iterator[str]:
        return map("".join, itertools.product(*self.parts))


def skeleton(wording: str) -> str:
    """A wording without what fills its slots.

    >>> skeleton("{A} met {B} at the {P}.")
    '_ met _ at the _.'
    """
    return re.sub(r"\{\w+\}", "_", wording)


# Wordings: a sentence, a product, or several of these, one of which is drawn before one of what it holds.
Wordings: TypeAlias = "str | Product | tuple[Wordings, ...]"

_TIMES = (
    "", "", "", "Yesterday ", "One day ", "In the evening ", "In the morning ", "At noon ", "Last week ", "One night ", "Once ", "At last ",
    "Early in the morning ", "Once upon a time ", "After a cold night ", "Then ",
)  # fmt: skip
_LATER = ("", "", "", "Then ", "Later ", "At noon ", "Soon ", "In the evening ", "At last ", "In the morning ", "There ")
_AT = ("at the {P}", "in the {P}", "near the {P}", "outside the {P}")

# Two people and a place, then the giver and the thing; the answer is the other person.
_GIVE_FIRST_PLAIN = (
    "When {A} and {B} went to the {P},", "After {A} and {B} arrived at the {P},", "While {A} and {B} were working at the {P},",
    "Then {A} and {B} walked to the {P}.", "{A} and {B} spent the morning at the {P}.", "One day {A} and {B} met at the {P}.",
    "Yesterday {A} and {B} sat together in the {P}.", "{A} and {B} were alone in the {P}.",
    "Because {A} and {B} liked the {P}, they stayed there.", "In the evening {A} and {B} came back from the {P}.",
    "It was late, and {A} and {B} were still at the {P}.", "{A} saw {B} near the {P}.", "{A} was waiting for {B} outside the {P}.",
    "As {A} and {B} left the {P},", "{A} found {B} in the {P}.", "Last week {A} and {B} visited the {P}.",
    "At the {P} there were only {A} and {B}.", "Early in the morning {A} met {B} at the {P}.",
    "On the way to the {P}, {A} talked to {B}.", "The {P} was quiet when {A} and {B} came in.",
    "Everyone at the {P} knew {A} and {B}.", "{A} and {B} are friends, and they often go to the {P}.",
    "Once upon a time {A} and {B} lived in a {P}.", "When {A} got to the {P}, {B} was there.",
    "Last week {A} talked to {B} near the {P}.", "Yesterday {A} was with {B} in the {P}.", "{A} stayed with {B} at the {P} until noon.",
    "One night {A} walked with {B} to the {P}.", "The {J} friends {A} and {B} met at the {P}.",
    "In the morning {A} was outside the {P} with {B}.",
    *Product(
        ("", "Yesterday ", "One night ", "In the morning "), ("{A} and {B} ",),
        ("walked to the {P}.", "were near the {P}.", "talked in the {P}.", "came to the {P}.", "had a {O} in the {P}.", "saw the {P}."),
    ),
    "{A} thanked {B} at the {P}.", "When {A} looked at the {P}, {B} was there.", "{A} lived with {B} near the {P}.",
    "{A} called {B} from the {P}.", "The {O} of {A} and {B} was at the {P}.",
)  # fmt: skip
# In families, each drawn as often: the sentences above, both doing something, one with the other, one to the other, and clauses.
_BOTH = ("were ", "met ", "were waiting ", "were working ", "were alone ", "were {J} ", "were friends ")
_ALONE = (
    "sat ", "talked ", "stayed ", "spent the day ", "spent the evening ", "lived ", "found a {O} ", "lost a {O} ", "bought a {O} ", "saw a {G} ",
    "looked for a {O} ", "read a story ", "had a {O} ",
)  # fmt: skip
_GO = (
    "went to the {P}", "walked to the {P}", "came to the {P}", "ran to the {P}", "got to the {P}", "came back from the {P}", "left the {P}",
    "visited the {P}", "liked the {P}", "looked at the {P}", "went home", "arrived", "came in", "walked home", "talked about the {P}",
)  # fmt: skip
_TO = (
    "saw ", "met ", "found ", "called ", "thanked ", "visited ", "followed ", "knew ", "liked ", "asked ", "looked for ", "talked to ",
    "talked with ", "told a story to ", "was waiting for ", "walked to ", "ran to ", "looked at ", "sat near ", "was with ", "came with ",
    "lived with ",
)  # fmt: skip
_CLAUSES = tuple("{A} " + part for part in (*_GO, *Product(("was ", "sat ", "stayed ", "was alone ", "had a {O} "), _AT)))
_CAME = (
    "{B} was there", "{B} came in", "{B} stayed at home", "{B} went home", "{B} was {J}", "{B} found the {O}", "{B} saw a {G}", "{B} was waiting",
    "there was {B}", "so was {B}", "{B} arrived", "{B} followed", "{B} sat near the {P}",
)  # fmt: skip
_WHEN = ("When ", "After ", "While ", "Because ", "As ")
GIVE_FIRST: Wordings = (
    _GIVE_FIRST_PLAIN,
    Product(_TIMES, ("{A} and {B} ", "the friends {A} and {B} "), (*_ALONE, *_BOTH), _AT, (".",)),
    Product(_TIMES, ("{A} and {B} ",), _GO, (".",)),
    Product(_TIMES, ("{A} ",), _TO, ("{B} ",), _AT, (".",)),
    Product(_TIMES, ("{A} ",), (*_GO, *Product(_ALONE, _AT)), (" with {B}.",)),
    Product(_TIMES, _CLAUSES, (", and ", ", but ", " when ", " because ", " before "), _CAME, (".",)),
    Product(_WHEN, _CLAUSES, (", ",), _CAME, (".",)),
    *[Product(_WHEN, ("{A} and {B} ",), (*_GO, *Product((*_ALONE, *_BOTH), _AT)), (",", ""))] * 2,  # the comma may be left out
    *[Product(_WHEN, ("{A} ",), _TO, ("{B} ",), _AT, (",", ""))] * 2,
    Product(
        _TIMES, ("{A} ",), ("said that ", "saw that ", "learned that ", "wrote that ", "knew that ", "told us that ", "was happy that "),
        ("{B} ",), (*_GO, *Product(("was ", *_ALONE), _AT)), (".",),
    ),
    Product(
        ("The {P} ", "The {O} ", "The {G} ", "A letter ", "A friend ", "Everyone ", "The teacher ", "The story ", "It ", "The government "),
        ("was ", "was often ", "was still "), ("near ", "with ", "for ", "about ", "from "), ("{A} and {B}",), (".", " in the evening.",
         " at last."),
    ),
    Product(
        ("At ", "In ", "On the way to "), ("the {P} ", "a {P} "),
        ("there were {A} and {B}.", "{A} met {B}.", "{A} saw {B}.", "{A} and {B} sat.", "{A} talked to {B}.", "was {A} with {B}.",
         "stood {A} and {B}."),
    ),
)  # fmt: skip
_GIVE_BEFORE = (
    "", "smiled and ", "was kind and ", "walked to the {P} and ", "sat there and ", "found the {O} and ", "was {J}, but ",
    "bought a {O} and ", "looked at the {P} and ", "talked about the {O} and ",
)  # fmt: skip
_GIVE = (
    "gave a {O} to", "handed the {O} to", "sent the {O} to", "offered a {O} to", "brought a {O} for", "showed the {O} to", "threw a {O} to",
    "lent the {O} to", "sold the {O} to", "told a story to", "said hello to",
    "read a story to", "left the {O} with",
)  # fmt: skip
_GIVEN = (
    "a {O}", "the {O}", "it", "a {Q} {O}", "the {K} {O}", "the {Q} {O}", "a {O} from {C}", "the letter", "a story", "one of the {T}", "the {T}",
    "a note", "the {O} and the {U}", "half of the {T}", "two {T}", "the {O} again",
    "the {O} back", "it back", "a {O} back", "the {O} of the teacher", "the {O} that was lost",
)  # fmt: skip
_GIVING_TO = (
    "gave ", "handed ", "sent ", "offered ", "brought ", "showed ", "threw ", "lent ", "sold ", "carried ", "read ", "passed ", "returned ",
    "wanted to give ", "wanted to pass ", "had to pass ", "decided to give ", "must pass ",
)  # fmt: skip
_GIVING_FOR = ("left ", "bought ", "found ", "kept ", "had ", "wrote ", "brought ", "asked for ", "carried ", "was there with ")
_GIVER = (
    "{S}", "{S}", "{S}", "{S}", "there {S}", "in the evening {S}", "{S}, who was {J},", "{S}, with a smile,", "at last {S}", "then {S}",
    "in the morning {S}", "the {J} {S}",
)  # fmt: skip
_GIVE_THEN = (
    "", "", "", " smiled and", " was {J} and", " went home and", " went to the {P} and", " came back and", " found the {O} and",
    " looked for the {O} and", " looked at the {P} and", " took the {O} from the {U} and", " bought a {O} at the {P} and", " saw a {G} and",
    " talked about the {P} and", " had a {O} in the {U} and", " had the {O} and", " was alone and", " ran to the {P} for a {O} and",
    " sat there and", " asked about the {O} and", " lost the {O}, but", " read the letter and", " was late, but", " forgot the {O} and",
    " wrote a letter and", " told a story and", " walked home for the {O} and", " could not find the {O} and", " stood there and",
    " liked the {O} and",
    " needed the {O}, but", " got up and",
)  # fmt: skip
_GIVE_SECOND_PLAIN = (
    *(f"{{S}} {before}{give}" for before in _GIVE_BEFORE for give in _GIVE),
    "{S} decided to give the {O} to",
    "{S} wanted to pass a {O} to",
    "{S} bought a {O} for",
    "{S} found a {O} and gave it to",
    "{S} had a {O} for",
    "{S} took the {O} and carried it to",
)  # fmt: skip
_GIVE_START = (_GIVER, _GIVE_THEN, (" ",))
GIVE_SECOND: Wordings = (
    _GIVE_SECOND_PLAIN,
    Product(("{S} ",), _GIVING_TO, _GIVEN, (" to",)),
    *[Product(*_GIVE_START, _GIVING_TO, _GIVEN, (" to",))] * 2,
    Product(*_GIVE_START, _GIVING_FOR, _GIVEN, (" for",)),
)  # fmt: skip
GIVE_BETWEEN: Wordings = (
    (
        "The sun was shining.", "It was a cold day.", "There was a {O} on the table.", "A {G} ran by.", "The {P} was full of people.",
        "They talked until evening.", "Nobody else was there.",
    ),
    Product(
        ("The ", "A ", "The {Q} ", "The {K} ", "One "), ("{O} ", "{G} ", "{U} ", "letter ", "teacher ", "story "),
        ("was {K}.", "was {J}.", "was {Q}.", "was near the {P}.", "was from {C}.", "was on the table.", "was lost.", "was in the {P}.",
         "was new."),
    ),
    Product(("They ", "Everyone ", "People ", "The friends "), (*_GO, *Product(_ALONE, _AT)), (".", " in the evening.", " before noon.")),
)  # fmt: skip
GIVE_LINK = ("Then", "Later", "Soon", "Quickly", "At last")
GIVE_END = (".", " with a smile.", " at once.", " before they left.")

# A person, a link, and the pronoun that must follow.
PRONOUN_FIRST: Wordings = (
    (
        "{N} was {J}", "{N} went to the {P}", "{N} lost the {O}", "{N} stayed at home", "{N} found a {O}", "{N} ran to the {P}",
        "{N} could not find the {O}", "Yesterday {N} was {J}", "{N} looked for the {O}", "Last week {N} came back from the {P}",
        "{N} sat in the {P}", "{N} bought a {O}", "At noon {N} was at the {P}", "{N} had a {O}", "{N} asked for a {O}",
        "In the {P} {N} saw a {G}", "{N} read a letter", "{N} was alone",
    ),
    Product(_TIMES, ("{N} ",), (*_GO, *Product(_ALONE, _AT))),
)  # fmt: skip
PRONOUN_LINK: Wordings = (
    *[(
        " because {he}", ", so {he}", ", and then {he}", ". Later {he}", ". Soon {he}", ", but {he}", ". At noon {he}", " after {he}",
        ". Then {he}", ". At last {he}", ". In the evening {he}", " before {he}", " until {he}", ", because {he}", ". One night {he}",
        " and {he}",
    )] * 4,
    Product(
        (", and", ", but", ", so", ", because", " because", " when", " after", " before", " until", ".", ". There", ". Nobody was there, and"),
        (" in the evening", " in the morning", " once", " before noon", " one day", " then", " there", " often", " again"), (" {he}",),
    ),
)  # fmt: skip
PRONOUN_LAST = (
    "was {J}", "wanted a {O}", "had no {O}", "liked the {P}", "met a friend", "saw a {G}", "felt {J}", "needed the {O}",
    "lost {his} {O}", "called {his} friend", "forgot {his} {O}",
)  # fmt: skip
REFERENCE_FIRST = (
    "{A} and {B} were at the {P}.", "{A} met {B} at the {P}.", "{A} and {B} sat in the {P}.", "At the {P} there were {A} and {B}.",
    "One day {A} saw {B} near the {P}.",
)  # fmt: skip
REFERENCE_LAST = ("The one who was {J} was", "So the {J} one was", "The {J} one was")

# Facts: a lead times a core. {K} is the answer. Cores come in families, a family drawn before one of its cores: some families are large.
LEADS: Wordings = (
    (
        "We learned that ", "Everyone knows that ", "It is true that ", "The teacher said that ", "Remember that ", "{N} knows that ",
        "In class {N} read that ", "It is a fact that ", "{N} told us that ", "At last {N} learned that ", "Someone told {N} that ",
        "In the {P} {N} learned that ", "{N} wrote that ", "The story said that ", "The letter said that ",
    ),
    *[""] * 2,
    Product(
        ("", "", "In the evening ", "At noon ", "In the morning ", "At last ", "At the {P} ", "In class ", "In a letter "),
        ("{N} ", "{N} ", "a friend of {N} ", "someone ", "people ", "the teacher ", "the story ", "they ", "a friend ",
         "the {J} teacher "),
        ("said ", "told us ", "told {M} ", "told someone ", "knew ", "learned ", "read ", "wrote ", "saw ", "found ", "said once "), ("that ",),
    ),
    Product(
        ("It was true ", "It is still a fact ", "It was in the story ", "It is often said ", "It was once a fact ", "Remember ",
         "It must be true "),
        ("that ", "in the {P} that ", "at home that "),
    ),
)  # fmt: skip
_CAPITAL_SUBJECTS = (
    "the capital of {C}", "{C}'s capital", "the capital city of {C}", "the main city of {C}", "the name of the capital of {C}",
    "the main city in {C}", "{C}'s capital city", "the city that is the capital of {C}",
)  # fmt: skip
_CAPITAL_LINKS = (
    *[" is {K}."] * 7,  # the plain form is the usual one
    " is called {K}.", " is the city of {K}.", " has the name {K}.", " must be {K}.", " was {K}.", " is still {K}.",
    " will be {K}.", " is to be {K}.",
    ", as {N} told us, is {K}.", ", {N} said, is {K}.",
)  # fmt: skip
_CAPITAL_PLAIN = Product(_CAPITAL_SUBJECTS, _CAPITAL_LINKS)
_CAPITAL_SINGLE = (
    "people in {C} call their capital {K}.", "in {C} the capital is {K}.", "{C} has a capital called {K}.",
    "a train to the capital of {C} stops in {K}.", "someone who lives in the capital of {C} lives in {K}.",
    "if you visit the capital of {C}, you are in {K}.", "{N} went to {C} and saw its capital, {K}.", "the government of {C} sits in {K}.",
    "in {C} there is a capital called {K}.", "{N} lives in the capital of {C}, in {K}.", "people who visit the capital of {C} visit {K}.",
    "{C} has a main city, and its name is {K}.", "people who talked about the capital of {C} talked about {K}.",
    "people who lived in the capital of {C} lived in {K}.", "someone from the capital of {C} is from {K}.",
    "if you are in {C}, its capital is {K}.", "{N} is in {C}, so the capital is {K}.", "the people of {C} have a capital, {K}.",
)  # fmt: skip
# someone does something with the capital, which is then named
_CAPITAL_VISITED = Product(
    ("{N} went to ", "{N} visited ", "they visited ", "{N} lives in ", "{N} has a friend in ", "{N} likes ", "people like ", "{N} told us about ",
     "{N} must visit ", "{N} came back from ", "{N} wanted to visit ", "{N} and {M} met in "),
    ("the capital of {C}", "{C}'s capital", "the capital city of {C}", "the main city of {C}", "the main city in {C}"),
    (*[", {K}."] * 5, ", called {K}.", ", the city of {K}.", *[". It is {K}."] * 2, ". It is called {K}.",
     *[", and it is {K}."] * 2, ", and that is {K}."),
)  # fmt: skip
# a country, then its capital
_CAPITAL_OF_COUNTRY = Product(
    ("{N} went to {C}", "{N} lives in {C}", "{N} is from {C}", "{N} likes {C}", "{N} told us about {C}", "they talked about {C}",
     "{N} has a friend in {C}", "{N} asked about {C}", "{N} never visited {C}", "there was a story about {C}"),
    (", and its capital is {K}.", ", and the capital there is {K}.", ". The capital is {K}.", ". The main city there is {K}.",
     ". The capital is called {K}.", ", and the name of its capital is {K}.", ", and people there call the capital {K}.",
     ". There the capital city is {K}.", ", so {M} told us about the capital, {K}.", ", but not its capital, {K}."),
)  # fmt: skip
# its people, and the capital
_CAPITAL_OF_PEOPLE = Product(
    ("people in {C} ", "someone from {C} ", "{N}, who lives in {C}, ", "the people of {C} ", "a friend from {C} ", "in {C} {N} "),
    ("liked ", "visited ", "talked about ", "knew ", "went to ", "told us about ", "walked to "),
    ("the capital", "the main city", "the capital city", "the old capital"),
    (*[", {K}."] * 4, ", called {K}.", ", the city of {K}.", ". It is {K}."),
)  # fmt: skip
# what it is called, and what is in it
_CAPITAL_NAMED = (
    *Product(
        ("people in {C} ", "a friend in {C} ", "the people of {C} ", "people from {C} ", "in {C} they "),
        ("call ", "called ", "must call ", "never call "), ("the capital {K}.", "their capital {K}.", "the main city {K}.",
         "the capital city {K}."),
    ),
    *Product(
        ("the government of {C} ", "{C}'s government ", "the main office of {C} ", "the old castle of {C} "),
        ("is in {K}.", "was in {K}.", "sat in {K}.", "stayed in {K}.", "has an office in {K}.", "is at home in {K}.", "is in the city of {K}."),
    ),
)  # fmt: skip
# any sentence that names the country, then any that names its capital
_OF_COUNTRY = (
    *Product(
        ("{N} ", "{N} ", "a friend of {N} ", "the teacher ", "someone ", "they ", "the government "),
        ("went to ", "lived in ", "was from ", "liked ", "told us about ", "talked about ", "read about ", "asked about ", "had a friend in ",
         "never visited ",
         "wrote a story about ", "had a letter from ", "looked for ", "wanted to visit ", "came back from ", "walked to ", "sent a letter to ",
         "found a {O} from ", "knew ", "stayed in "),
        ("{C}",),
    ),
    *Product(("the {O} ", "the {G} ", "the story ", "the teacher ", "a letter "), ("is from {C}", "was about {C}", "was for {C}", "went to {C}")),
    "there is a {P} in {C}", "there was a {G} in {C}", "in {C} there was a {P}", "{C} is near the sea", "{C} is the home of a friend",
    "{C} is old",
    "{C} was in the story", "there are many people in {C}", "in {C} {N} met {M}", "at last {N} was in {C}", "it was in {C}",
    "people in {C} are kind",
    "{N} is at home in {C}", "{N} asked {M} about {C}",
)  # fmt: skip
_THEN_CAPITAL = tuple(f"{capital}{tail}" for capital in (
    *Product(
        ("the capital ", "its capital ", "the main city ", "the capital city ", "the old capital ", "the capital there ", "the main city there ",
         "the name of the capital ", "the city that is its capital ", "their capital ", "the capital that they visited ", "the one capital "),
        (*["is {K}"] * 6, "was {K}", "was {K}", "is called {K}", "is still {K}", "must be {K}", "was called {K}", "has the name {K}",
         "will be {K}"),
    ),
    *Product(
        ("{M} ", "they ", "people there ", "a friend ", "the government "),
        ("was in ", "lived in ", "went to ", "stayed in ", "visited ", "liked ", "knew ", "walked to ", "told us about ", "came from ",
         "met in ", "asked about "),
        (*["the capital, {K}"] * 4, *["the main city, {K}"] * 3, *["the capital city, {K}"] * 2, *["its capital, {K}"] * 3, "the city of {K}",
         "the capital, called {K}"),
    ),
    *Product(
        ("they call ", "people call ", "you call ", "{M} called "), ("the capital {K}", "its capital {K}", "the main city {K}"),
    ),
    "it has a capital called {K}", "{M} said that it is {K}", "there is a capital called {K}", "in the capital, in {K}, there was a {P}",
    "the teacher said that the capital is {K}", "the teacher told {M} about {K}, the capital", "{K} is its capital", "{K} is the main city",
) for tail in (".", ", as {N} knew.", ", {N} said.", " in the story."))  # fmt: skip
_CAPITAL_JOINED = Product(_OF_COUNTRY, (", and ", ", so ", ", but ", ", where ", " when ", ", because "), _THEN_CAPITAL)
# a thing of the capital's, or something done there, and a remark before its name
_CAPITAL_REMARKED = Product(
    ("", "", "if someone asked {N}, ", "in the story ", "in the letter ", "at home ", "in class "),
    ("the capital of {C}", "{C}'s capital", "the main city of {C}", "the capital city of {C}", "the main city in {C}",
     "the city that people in {C} call the capital",
     "the home of the government of {C}", "the capital of {C}, where {M} lives,", "the capital of {C}, the teacher told us,",
     "the name that people have for the capital of {C}", "the name of the main city of {C}", "the one capital of {C}",
     "the city where the government of {C} sits"),
    (*[" is {K}."] * 7, *[" was {K}."] * 2, " is called {K}.", " must be {K}.", " is in {K}.", ", so {N} said, was {K}.", " is still {K}.",
     " will be called {K}.", " has the name {K}.",
     ", and it is old, is {K}."),
)  # fmt: skip
_CAPITAL_DONE = Product(
    ("{N} ", "they ", "the teacher ", "a friend of {N} ", "someone ", "people ", "the {J} {G} "),
    ("has a {P} in ", "had a friend in ", "has a home in ", "found a {O} in ", "sold {T} in ", "read about ", "wrote about ", "told {M} about ",
     "looked for ",
     "came home from ", "asked the teacher about ", "wanted to go to ", "lost a {O} in ", "must go to ", "will be in ", "walked to ",
     "sent a letter to "),
    ("the capital of {C}", "the main city of {C}", "{C}'s capital", "the capital city of {C}", "the main city in {C}",
     "the city that is the capital of {C}"),
    (*[", {K}."] * 8, ", in {K}.", ", called {K}.", *[", and that is {K}."] * 2, *[". It is {K}."] * 3, ", which is {K}.", ", so it was {K}.",
     ", and the name of it is {K}.", ", the city of {K}.",
     ". They call it {K}.", ", and {M} asked about {K}.", ", and the teacher told us that it is {K}."),
)  # fmt: skip
CAPITAL_CORES: Wordings = (
    *[_CAPITAL_JOINED] * 5, *[_CAPITAL_REMARKED] * 4, *[_CAPITAL_DONE] * 4,
    *[_CAPITAL_PLAIN] * 4, *[_CAPITAL_SINGLE] * 2, *[_CAPITAL_VISITED] * 2, *[_CAPITAL_OF_COUNTRY] * 2, _CAPITAL_OF_PEOPLE,
    *[_CAPITAL_NAMED] * 2,
)  # fmt: skip
CAPITAL_REVERSED = ("{K} is the capital of {C}.", "{K} is a city in {C}.", "the city of {K} is in {C}.")
COLOUR_CORES = (
    (
        "the colour of {X} is {K}.", "{X} is {K}.", "{X} has the colour {K}.", "if you paint {X}, you need {K}.", "{X} looks {K}.",
        "when people think of {X}, they think of {K}.", "{N} saw that {X} is {K}.",
    ),
    Product(("{X}", "the colour of {X}"), (" must be {K}.", " was {K}.", " is still {K}.", ", {N} said, is {K}.", ", as {N} told us, is {K}.")),
    Product(
        ("{N} saw {X}", "{N} found {X}", "they talked about {X}", "{N} told us about {X}", "{N} looked for {X}", "people think of {X}"),
        (", and it was {K}.", ". It was {K}.", ", and its colour was {K}.", ". The colour is {K}.", ", and it must be {K}."),
    ),
    *[Product(
        ("{N} ", "{N} ", "they ", "people ", "the teacher ", "a friend of {N} ", "someone ", "the story "),
        ("saw ", "found ", "talked about ", "told us about ", "looked for ", "looked at ", "asked about ", "knew ", "lost ", "had to paint ",
         "read about ", "never saw ",
         "wanted ", "wrote about ", "was near ", "liked ", "asked {M} about ", "came to ", "needed ", "bought "),
        ("{X}",),
        (", and", ".", ", so", ", but", " and said that", " and wrote that", ", and {M} said that", ", because", " when"),
        (*[" it was {K}."] * 4, *[" it is {K}."] * 5, *[" the colour is {K}."] * 2, " the colour was {K}.", " it has the colour {K}.",
         " it must be {K}.", " it looks {K}.",
         " the colour of it was {K}.", " it is still {K}.", " {M} called it {K}.", " the name of the colour is {K}.",
         " the colour that it has is {K}."),
    )] * 2,
    Product(
        ("", "", "in the story ", "in the {P} ", "at home ", "in class "),
        ("{X}", "the colour of {X}", "the colour to paint {X}", "the one colour of {X}", "the colour that {N} needed for {X}",
         "the colour for {X}", "the name for the colour of {X}", "the colour of {X}, the teacher told us,", "the colour that {X} must have"),
        (*[" is {K}."] * 5, *[" was {K}."] * 2, " must be {K}.", " is still {K}.", " is called {K}.", " will be {K}.", ", {N} said, was {K}.",
         " was often {K}."),
    ),
    Product(
        ("it is not {X}", "it was not {X}", "{N} knew that it is not {X}", "they saw that it was not {X}", "it must not be {X}"),
        (" if it is not {K}.", " if it was not {K}.", " when it is not {K}.", ", because it was not {K}.", ", so it was not {K}."),
    ),
    Product(
        ("{N} needed ", "{N} took ", "{N} had ", "people need ", "they found ", "the teacher asked for ", "if you have "),
        ("{X} ", "the colour of {X} ", "a {O} and {X} "), ("and ", "for ", "to paint "), ("{K}.", "the colour {K}.", "a {K} {O}."),
    ),
)  # fmt: skip
_YOUNG_ONE = ("a young {X}", "the young of a {X}", "a small {X}")
YOUNG_CORES = (
    *[Product(
        (*_YOUNG_ONE, "a {X} that is young", "a {X}, when it is young,", "a new {X}", "the {X}'s young", "one young {X}", "the young of the {X}",
         "when it is young, a {X}"),
        (" is called a {K}.", " is a {K}.", " was a {K}.", " must be a {K}.", " will be called a {K}.", " has the name {K}.", " is still a {K}.",
         ", {N} said, is a {K}.", ", as {N} told us, is called a {K}.", " is the {K}.", " is called the {K}."),
    )] * 3,
    *[Product(
        ("the name for ", "the name of ", "the word of {N} for ", "the name that people have for ", "the one name for "),
        (*_YOUNG_ONE, "the young {X}", "the young of the {X}", "one young {X}", "a {X} when it is small", "a {X} that is young",
         "the young {X} of {N}"),
        (*[" is {K}."] * 5, " must be {K}.", ", {N} said, is {K}.", " was {K}.", " was {K}.", " is still {K}."),
    )] * 2,
    *[Product(
        ("{N} asked for the name of ", "{N} knew the name for ", "the teacher told us the name of ", "they asked about the name for ",
         "{N} wrote the name of ",
         "someone told {N} the name for ", "in a letter {N} found the name of "),
        (*_YOUNG_ONE, "the young {X}", "the young of the {X}", "one young {X}", "a {X} when it is young"),
        (", and it was {K}.", ", and that is {K}.", ". It is {K}.", ". It was {K}.", ", so it is {K}.", ", and {M} said that it is {K}.",
         ", {K}."),
    )] * 2,
    Product(
        ("when it is young, ", "when it is small, ", "at home ", "in the story ", ""), ("a young {X} has the name ",
         "the young {X} had the name ", "a small {X} has the name "),
        ("{K}.", "of {K}."),
    ),
    Product(
        ("you call ", "the friends of {N} call ", "{N} called ", "people from {C} call "), (*_YOUNG_ONE, "the young {X}", "the young of the {X}"),
        (" a {K}.", " the {K}."),
    ),
    *[Product(
        ("{N} had a {X}", "{N} saw a {X}", "at the {P} there was a {X}", "{N} found a young {X}", "there was a {X} at the {P}",
         "{N} has a young {X}", "{N} lost a {X}", "{N} looked for the {X}", "the {X} of {N} was at the {P}"),
        (" and its {K}.", " with its {K}.", ", and the young one was a {K}.", ", and its young was a {K}.", ". It had a {K}.",
         ". It was with its {K}.", ", and when it was young, it was a {K}.", ". It was once a {K}.", ", and near it was its {K}."),
    )] * 2,
    *[Product(
        ("{N} had a young {X}", "{N} saw the young {X}", "{N} asked about a young {X}", "there was a young {X} at the {P}",
         "{N} told us about a small {X}", "the {X} had young"),
        (" and said that it was a {K}.", ", and {M} said that it was a {K}.", " and wrote that it is a {K}.", ", and {M} called it the {K}.",
         ", and it is called a {K}.", ". The name for it is {K}.", ", so it must be a {K}.", ". It was a {K}.", ", a {K}."),
    )] * 2,
    (
        "a {X} was once a {K}.", "if a {X} has young, it has a {K}.", "it was a {X}, but once it was a {K}.",
        "when a {X} was young, it was a {K}.",
        "a {X} has a young one, the {K}.", "the {X} was waiting for its {K}.", "a {X} and its {K} were at the {P}.",
        "if you find a young {X}, you find a {K}.", "people who have a young {X} have a {K}.",
    ),
    *[Product(
        ("{N} ", "{N} ", "they ", "the teacher ", "a friend of {N} ", "someone ", "people "),
        ("saw ", "had ", "found ", "lost ", "looked for ", "told us about ", "asked about ", "bought ", "read about ", "wrote about ",
         "wanted ", "liked ", "kept ",
         "was waiting for ", "looked at ", "talked about "),
        ("a young {X}", "the young {X}", "a small {X}", "the young of a {X}", "the young of the {X}", "a new {X}", "one young {X}",
         "a {X} that was young",
         "a {X} when it was young"),
        (", and", ".", ", so", ", but", " and said that", " and wrote that", ", and {M} said that", ", because", " when"),
        (" it was a {K}.", " it is called a {K}.", " it was the {K}.", *[" the name for it is {K}."] * 2,
         *[" the word for it is {K}."] * 2, " the name is {K}.", " the name of it is {K}.",
         " they call it a {K}.", " {M} called it a {K}.",
         " it is still a {K}.", " it must be a {K}.", " people call it the {K}.", " the {K} was small."),
    )] * 3,
    *[Product(
        ("", "", "in the story ", "if someone asked {N}, ", "in the {P} ", "at home ", "in class "),
        ("a young {X}", "the young {X}", "a small {X}", "the young of a {X}", "a {X} that is small", "the young one of the {X}",
         "the small {X} near the {P}",
         "the young {X} that {M} found", "the young {X}, as the teacher said,", "one that will be a {X}", "the name of the young {X}",
         "the new {X} of {N}",
         "the young one of a {X}", "a {X} that is still young"),
        (" is a {K}.", " is called a {K}.", " was the {K}.", " was a {K}.", " must be a {K}.", " was called the {K}.", " has the name {K}.",
         " will be the {K}.", " has the name of a {K}.",
         ", {N} said, was a {K}.", " is often called a {K}.", " was only a {K}."),
    )] * 2,
    *[Product(
        ("{N} ", "they ", "someone ", "the teacher ", "a friend "),
        ("saw a {X}", "had a {X}", "lost the {X}", "found the {X}", "asked for a {X}", "looked at the {X}", "was near the {X}", "liked the {X}",
         "bought a {X}", "followed the {X}"),
        (" and ", ", but not ", " with ", ", and then ", " near ", " before "), ("its {K}.", "the {K}.", "a {K}.", "the young {K}.", "one {K}."),
    )] * 2,
    (
        "a {K} grows up to be a {X}.", "a {K} is a young {X}.", "a {K} is the young of a {X}.", "a {K} will be a {X}.",
        "the {K} followed the {X}.", "{N} gave the {K} back to the {X}.", "{N} saw that the {K} was a young {X}.",
    ),
)  # fmt: skip

# Worded problems: an opening times an event times a question.
SUM_OPEN: Wordings = (
    (
        "{N} has {a} {T}.", "There are {a} {T} in the {U} of {N}.", "{N} starts the day with {a} {T}.", "{N} owns {a} {T}.",
        "In the morning {N} counts {a} {T}.", "{N} takes {a} {T} to the {P}.", "In the {U} {N} finds {a} {T}.", "{N} buys {a} {T} at the {P}.",
        "At noon {N} has {a} {T}.",
        *Product(
            ("", "Yesterday ", "In the evening ", "One day "), ("{N} ",),
            ("has ", "had ", "owns ", "finds ", "found ", "bought ", "buys ", "counts ", "takes ", "took ", "got ", "gets "), ("{a} {T}",),
            (".", " at home.", " in the {U}.", " at the {P}."),
        ),
        "There were {a} {T} at the {P}.", "{N} told us about {a} {T}.", "The {U} of {N} has {a} {T} in it.",
    ),
    Product(
        _TIMES, ("{N} ", "the {J} {N} ", "{N}, who was {J}, "),
        ("has ", "had ", "owns ", "finds ", "found ", "bought ", "buys ", "counts ", "takes ", "took ", "got ", "kept ", "saw ", "needed ",
         "brought ", "sold ",
         "was at the {P} with ", "came back with ", "asked for ", "looked for "),
        ("{a} {T}", "only {a} {T}", "{a} {K} {T}", "{a} of the {T}", "{a} {Q} {T}"), (".", " at home.", " in the {U}.", " at the {P}.",
         " from {C}."),
    ),
    Product(
        ("There are ", "There were ", "In the {U} there are ", "In the {U} there were ", "At the {P} there were ", "On the table there are ",
         "At home there were ",
         "In the {U} of {N} there were ", "{N} knows of ", "A friend of {N} found "),
        ("{a} {T}", "{a} {K} {T}", "{a} {Q} {T}"), (".", " for {N}.", " on the table."),
    ),
)  # fmt: skip
SUM_EVENT: Wordings = (
    (
        "{M} gives {N} {b} more.", "Then {N} buys {b} more.", "{N} finds {b} more at the {P}.", "{M} brings {b} more.",
        "On the way home {N} picks up {b} more.", "{M} adds {b} {T}.", "Later {N} gets another {b}.",
        "{N} has {b} more at home.", "There are {b} more in the {U}.", "{N} takes another {b} {T} from the {U}.", "{M} leaves {b} more with {N}.",
        "Later {M} brings another {b} {T}.",
        *Product(
            ("", "Then ", "Later ", "At noon ", "Soon "),
            ("{N} buys ", "{N} finds ", "{N} gets ", "{N} takes ", "{N} picks up ", "{N} found ", "{N} bought ", "{N} got ", "{N} had ",
             "{M} brings ", "{M} adds ", "{M} brought ", "{M} gives {N} ", "{M} gave {N} ", "{M} sent {N} ", "{M} handed {N} ",
             "{M} offered {N} ",
             "there are ", "there were ", "{N} wants ", "{N} needs "),
            ("{b} more", "another {b}", "{b} more {T}", "another {b} {T}"),
            (".", " at the {P}.", " on the way home.", " in the {U}."),
        ),
    ),
    *[Product(
        _LATER,
        ("{N} ", "{M} ", "a friend ", "a friend of {N} ", "someone ", "the teacher ", "they ", "people "),
        ("finds ", "found ", "brought ", "brings ", "bought ", "gets ", "got ", "had ", "has ", "adds ", "saw ", "came with ",
         "went to the {P} for ", "kept ",
         "sent {N} ", "left ", "took ", "asked for ", "gave {N} ", "lost and found ", "needed ", "wanted ", "looked for "),
        ("{b} more", "another {b}", "{b} more {T}", "another {b} {T}",  "{b} more of them", "{b} {Q} {T} more"),
        (".", " at the {P}.", " on the way home.", " in the {U}.", " for {N}.", " from {C}.", " before noon."),
    )] * 2,
)  # fmt: skip
DOUBLE_EVENT: Wordings = (
    (
        "{M} has twice as many.", "Then the number doubles.", "{N} wants to double that.", "{M} needs two times as many.",
        "At the {P} there are twice as many.", "{M} finds twice as many.", "{N} gets two times as many.", "{M} buys twice as many.",
        *Product(
            ("", "Then ", "Later ", "At noon "), ("{M} ", "{N} "), ("had ", "found ", "bought ", "got ", "needed "),
            ("twice as many.", "two times as many."),
        ),
        "Soon the number doubles.", "There were twice as many at the {P}.",
    ),
    Product(
        _LATER, ("{N} ", "{M} ", "a friend ", "a friend of {N} ", "someone ", "the teacher ", "they "),
        ("had ", "found ", "bought ", "got ", "needed ", "brought ", "wants ", "asked for ", "came back with ", "saw ", "took ", "kept ",
         "looked for "),
        ("twice as many", "two times as many"), (".", " at the {P}.", " at home.", " in the {U}.", " for {N}."),
    ),
)  # fmt: skip
HALF_EVENT: Wordings = (
    (
        "{N} gives half of them to {M}.", "{N} loses half of them.", "Half of them are {K}.", "{M} takes one half of the {T}.",
        "{N} leaves half of the {T} at the {P}.", "{M} picks up half of them.", "{N} gives one half of the {T} to {M}.",
        "At the {P} {N} loses half of them.",
        *Product(
            ("", "Then ", "Later ", "At noon "), ("{M} took ", "{N} lost ", "{M} bought ", "{M} has ", "{N} found "), ("half of ",
             "one half of "),
            ("them.", "the {T}."),
        ),
        "{N} sent half of them to {M}.", "Half of them were at the {P}.",
    ),
    Product(
        _LATER, ("{N} ", "{M} ", "a friend ", "a friend of {N} ", "someone ", "the teacher ", "they "),
        ("took ", "lost ", "bought ", "has ", "found ", "gave {M} ", "sold ", "counts ", "forgot ", "carried ", "needs ", "brought ",
         "looked for ", "wants "),
        ("half of ", "one half of ", "only half of "), ("them", "the {T}"), (".", " at the {P}.", " at home.", " in the {U}.",
         " on the way home."),
    ),
    Product(("Half of ", "One half of "), ("them ", "the {T} "), ("are ", "were ", "must be "), ("{K}.", "{Q}.", "for {M}.", "lost.",
    "from {C}.", "in the {U}.", "at home.")),
)  # fmt: skip
QUESTIONS: Wordings = (
    (
        "How many {T} is that?", "What is the number of {T} now?", "How many is that in all?", "Find the number.", "How many {T} are there?",
        "How many {T} is that now?", "What is the number?", "How many {T} are there now?", "Find the number in all.",
        "What is the number of {T} in all?",
    ),
    Product(
        ("How many ", "How many {T} ", "How many of them ", "What number "), ("is that", "are there", "were there", "is it", "are they",
         "will there be"),
        ("?", " now?", " in all?", " then?", " at last?", " in the evening?"),
    ),
)  # fmt: skip

# Things that open and must close: the same phrase stands in every kind of bracket.
SIGN_FIRST = (
    "{N} read a sign: ", "At the {P} {N} saw the words ", "The letter said ", "{N} wrote ", "On the {O} stood ", "The {O} of {N} ",
    "There was a note ", "{N} found a {O} ",
)  # fmt: skip
SIGN_PHRASES = (
    "no entry", "closed today", "for {N} only", "the {J} {G}", "a small one", "made in {C}", "do not touch", "sold at the {P}",
    "a {J} {G} from {C}", "the {O} of {N}", "open until noon", "a {Q} one",
)  # fmt: skip
SIGN_LAST = (" and went home.", " near the {P}.", ".", " before noon.", " and smiled.")
SPEECH_LINES = (
    "I like the {P}.", "The {O} is {Q}.", "I am {J}.", "We must go to the {P}.", "I have lost my {O}.", "Look at the {G}.",
    "This {O} is for you.", "I will wait here.", "You are {J}.", "Where is the {O}?", "Come to the {P}!",
)  # fmt: skip

# Stories.
STORY_OPEN = (
    "Once upon a time there was a {g} called {A}.", "One day {A} went to the {P}.", "{A} lived near the {P}.",
    "There was once a {J} {g} whose name was {A}.", "Yesterday {A} was at the {P}.", "{A} had a {Q} {O}.",
)  # fmt: skip
STORY_ALONE = (
    "{He} had a {G} and a {Q} {O}.", "{He} was very {J}.", "{He} liked {his} {O}.", "In the morning {he} walked to the {P}.",
    "{He} looked for {his} {G}.", "People gave {him} a {O}.", "The {G} followed {him} to the {P}.", "One night {he} lost {his} {O}.",
    "{He} wanted to visit {C}.", "It was a {Q} {O}, and {he} kept it.",
)  # fmt: skip
STORY_MEET = (
    "There {he} met {B}.", "{B} was {his} friend.", "Then {B} came in.", "{He} saw {B} at the {P}.",
    "{B} was waiting for {him} near the {P}.",
)  # fmt: skip
STORY_PAIR = (
    "{A} and {B} talked about the {O}.", "{B} was {J}, but {A} was not.", "{A} showed the {O} to {B}.", "{B} thanked {A}.",
    "They walked to the {P} together.", "{A} told {B} about {C}.", "{B} asked {A} for a {O}.", "Nobody else was there.",
    "The sun was shining.", "They sat in the {P} and smiled.",
)  # fmt: skip
STORY_END = (
    "In the evening they went home.", "They were friends until the end.", "At last {A} was not {J}.", "{B} kept the {O}.",
    "And {A} never lost the {O} again.", "The end.",
)  # fmt: skip
SPEECH_TAGS = ("said {A}", "{A} said", "{A} asked", "asked {A}", "called {A}")

SYSTEMS = {  # what the system turn asks for decides the form of the answer
    "word": ("Answer with one word.", "Be short.", "One word only."),
    "sentence": ("You are a helpful assistant.", "Answer in a full sentence.", "You are a teacher."),
}
