"""Wordings that training never sees, and that use only words training knows: three sets, which differ in when they were looked at.

- `DEVELOPMENT`: looked at while the first stages were settled, when training's wordings were widened twice. Figures on them are of development.
- `HELD_OUT`: written before the wordings of the last two stages, and looked at before each of the two: what failed showed what to widen.
- `FRESH`: written at the same time, decided nothing, and measured once, after everything was settled.

Keys are the tables of `templates` that they stand in for; a table that a set does not have is training's own.
"""

from __future__ import annotations

DEVELOPMENT: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "Once {A} and {B} were in the {P},", "{A} and {B} were waiting together near the {P}.",
        "Last night {A} talked with {B} outside the {P}.", "The friends {A} and {B} stayed in the {P} until evening.",
    ),
    "GIVE_SECOND": (
        "{S} came back and gave the {O} to", "{S} kept a {O} for", "{S} asked for a {O} and sent it to", "{S} carried the {O} to",
    ),
    "PRONOUN_FIRST": ("{N} sat near the {P}", "One day {N} saw a {O}", "{N} left the {O} at the {P}"),
    "PRONOUN_LINK": (" and then {he}", ", but then {he}"),
    "REFERENCE_FIRST": ("Last week {A} and {B} came to the {P}.",),
    "REFERENCE_LAST": ("The friend who was {J} was",),
    "LEADS": ("They told us that ", "{N} said that "),
    "CAPITAL_CORES": (
        "{C}'s main city is {K}.", "the capital city in {C} is called {K}.", "the capital of {C}, the teacher said, is {K}.",
        "the main city of {C} has to be {K}.", "the name of the main city of {C} is {K}.", "the capital of {C} was once called {K}.",
    ),
    "COLOUR_CORES": ("people told {N} that {X} is {K}.", "to paint {X} you need {K}."),
    "YOUNG_CORES": ("people call a young {X} a {K}.",),
    "SUM_OPEN": ("{N} brings {a} {T} to the {P}.", "At home {N} has {a} {T}."),
    "SUM_EVENT": ("{N} gets {b} more from {M}.", "At the {P} {M} finds another {b} {T}."),
    "DOUBLE_EVENT": ("{M} wants twice as many.", "{M} brings two times as many."),
    "HALF_EVENT": ("{M} finds half of them.", "{N} sold one half of them."),
    "QUESTIONS": ("How many are there now?", "Find the number of {T}."),
    "SIGN_FIRST": ("At the {P} there was a sign: ", "{N} saw the note "),
}  # fmt: skip

HELD_OUT: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "In the {P} {A} and {B} looked for a {O}.", "At noon {A} came to the {P} with {B}.", "{A} knew that {B} was at the {P}.",
        "When {A} and {B} went home from the {P},", "There was a {P} near the home of {A} and {B}.",
    ),
    "GIVE_SECOND": (
        "{S} wanted to give a {O} to", "{S} went home and sent the {O} to", "{S} looked for the {O} and showed it to",
        "{S} had to give the {O} to", "{S} left a {O} for",
    ),
    "PRONOUN_FIRST": ("{N} walked to the {P} alone", "Once {N} had a {O}", "{N} forgot the {O}"),
    "PRONOUN_LINK": (", and at last {he}", " when {he}"),
    "REFERENCE_FIRST": ("{A} talked to {B} at the {P}.",),
    "REFERENCE_LAST": ("In the story the {J} one was",),
    "LEADS": ("We read that ", "The teacher of {N} said that "),
    "CAPITAL_CORES": (
        "the government of {C} has its home in {K}.", "in {C} people call their main city {K}.",
        "if someone asked you for the capital of {C}, it is {K}.", "the city that people in {C} call the capital is {K}.",
        "the name that the capital of {C} has is {K}.", "when they were in {C}, they stayed in the capital, {K}.",
    ),
    "COLOUR_CORES": (
        "the colour that {X} has is {K}.", "when {N} looked at {X}, it was {K}.", "in the story {X} was {K}.",
    ),
    "YOUNG_CORES": (
        "the word for a young {X} is {K}.", "if you have a young {X}, you have a {K}.", "{N} looked at the young {X} and called it a {K}.",
        "in the story a small {X} is called a {K}.",
    ),
    "SUM_OPEN": ("{N} kept {a} {T} in a {U}.", "Last week {N} had {a} {T}.", "There were {a} {T} on the table of {N}."),
    "SUM_EVENT": (
        "A friend of {N} brings {b} more.", "{N} asked {M} for {b} more and got them.", "In the evening {M} came with another {b} {T}.",
        "{N} went to the {P} for {b} more {T}.",
    ),
    "DOUBLE_EVENT": ("{M} owns twice as many.", "In the {U} there are two times as many.", "At noon the number doubles."),
    "HALF_EVENT": ("{N} lent half of the {T} to {M}.", "{M} buys half of them.", "{N} left one half of the {T} at home."),
    "QUESTIONS": ("How many {T} are there in all?", "What is the number of them?"),
    "SIGN_FIRST": ("At home {N} saw a note: ", "The {O} had a sign "),
}  # fmt: skip

FRESH: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "The {P} was full when {A} and {B} arrived.", "After a cold night {A} met {B} in the {P}.", "{A} asked {B} to wait at the {P}.",
        "While {A} sat in the {P}, {B} came in.",
    ),
    "GIVE_SECOND": (
        "{S} found the {O} on the table and brought it to", "{S} wrote a note to", "{S} must give the {O} back to",
        "{S} ran home for the {O} and gave it to",
    ),
    "PRONOUN_FIRST": ("In the evening {N} was at the {P}", "{N} met a friend"),
    "PRONOUN_LINK": (", and at noon {he}", ", but at last {he}"),
    "REFERENCE_FIRST": ("{A} and {B} arrived at the {P} together.",),
    "REFERENCE_LAST": ("It is true that the {J} one was",),
    "LEADS": ("{N} learned from the teacher that ", "People told {N} that "),
    "CAPITAL_CORES": (
        "{N} asked about the capital of {C}, and the teacher said that it was {K}.", "the one city that is called the capital of {C} is {K}.",
        "many people in the capital of {C} have a home in {K}.", "{C} is the home of {N}, and the main city there is {K}.",
        "in the story {N} went to {C} and lived in the capital, {K}.", "the main city that you find in {C} is {K}.",
    ),
    "COLOUR_CORES": (
        "they saw {X}, and the colour of it was {K}.", "the colour to paint {X} with is {K}.", "{N} never saw {X} that was not {K}.",
    ),
    "YOUNG_CORES": (
        "they call a {X} that is young a {K}.", "the teacher asked for the name of a young {X}, and it is {K}.",
        "when a {X} is small, its name is {K}.", "the young one of the {X} in the story was a {K}.",
    ),
    "SUM_OPEN": ("In a {U} at home {N} had {a} {T}.", "One day {N} found {a} {T} near the {P}.", "{N} was at the {P} with {a} {T}."),
    "SUM_EVENT": (
        "{M} left {b} {T} for {N}.", "At last {N} picks up {b} more.", "And {b} more are on the table.",
        "Soon {M} and {N} find another {b}.",
    ),
    "DOUBLE_EVENT": ("{M} came with twice as many.", "{N} now needs two times as many.", "The friend of {N} has twice as many."),
    "HALF_EVENT": ("{N} forgot half of them at home.", "{M} gets one half.", "Half of the {T} are for {M}."),
    "QUESTIONS": ("What number of {T} is that?", "How many {T} were there?"),
    "SIGN_FIRST": ("{N} wrote a letter: ", "On the table stood the words "),
}  # fmt: skip

SETS = {"development": DEVELOPMENT, "held_out": HELD_OUT, "fresh": FRESH}
