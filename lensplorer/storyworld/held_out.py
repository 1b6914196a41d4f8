"""Wordings that training never sees, and that use only words training knows: four sets, which differ in when they were looked at.

- `DEVELOPMENT`: looked at while training's wordings were made: what failed showed what kinds of wording training lacked.
- `HELD_OUT`: looked at, as a table of figures, between the last stages of training.
- `ONCE_FRESH`: measured once after these, and looked at, wording by wording, before the last: after a few of them training itself goes on otherwise
  ("said that the hat was for" a country).
- `FRESH`: written before the last stage, decided nothing, and measured once, after everything was settled. Its sentences end as sentences of
  training do, so that what follows is not a matter of taste.

Keys are the tables of `templates` that they stand in for; a table that a set does not have is training's own. What stands
here is drawn again wherever training's parts would make it.
"""

from __future__ import annotations

DEVELOPMENT: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "Once {A} and {B} were in the {P},", "{A} and {B} were waiting together near the {P}.",
        "Last night {A} talked with {B} outside the {P}.", "The friends {A} and {B} stayed in the {P} until evening.",
        "In the {P} {A} and {B} looked for a {O}.", "At noon {A} came to the {P} with {B}.", "{A} knew that {B} was at the {P}.",
        "When {A} and {B} went home from the {P},", "There was a {P} near the home of {A} and {B}.",
    ),
    "GIVE_SECOND": (
        "{S} came back and gave the {O} to", "{S} kept a {O} for", "{S} asked for a {O} and sent it to", "{S} carried the {O} to",
        "{S} wanted to give a {O} to", "{S} went home and sent the {O} to", "{S} looked for the {O} and showed it to",
        "{S} had to give the {O} to", "{S} left a {O} for",
    ),
    "PRONOUN_FIRST": (
        "{N} sat near the {P}", "One day {N} saw a {O}", "{N} left the {O} at the {P}", "{N} walked to the {P} alone", "Once {N} had a {O}",
        "{N} forgot the {O}",
    ),
    "PRONOUN_LINK": (
        " and then {he}", ", but then {he}", ", and at last {he}", " when {he}",
    ),
    "REFERENCE_FIRST": (
        "Last week {A} and {B} came to the {P}.", "{A} talked to {B} at the {P}.",
    ),
    "REFERENCE_LAST": (
        "The friend who was {J} was", "In the story the {J} one was",
    ),
    "LEADS": (
        "They told us that ", "{N} said that ", "We read that ", "The teacher of {N} said that ",
    ),
    "CAPITAL_CORES": (
        "{C}'s main city is {K}.", "the capital city in {C} is called {K}.", "the capital of {C}, the teacher said, is {K}.",
        "the main city of {C} has to be {K}.", "the name of the main city of {C} is {K}.", "the capital of {C} was once called {K}.",
        "the government of {C} has its home in {K}.", "in {C} people call their main city {K}.",
        "if someone asked you for the capital of {C}, it is {K}.", "the city that people in {C} call the capital is {K}.",
        "the name that the capital of {C} has is {K}.", "when they were in {C}, they stayed in the capital, {K}.",
    ),
    "COLOUR_CORES": (
        "people told {N} that {X} is {K}.", "to paint {X} you need {K}.", "the colour that {X} has is {K}.",
        "when {N} looked at {X}, it was {K}.", "in the story {X} was {K}.",
    ),
    "YOUNG_CORES": (
        "people call a young {X} a {K}.", "the word for a young {X} is {K}.", "if you have a young {X}, you have a {K}.",
        "{N} looked at the young {X} and called it a {K}.", "in the story a small {X} is called a {K}.",
    ),
    "SUM_OPEN": (
        "{N} brings {a} {T} to the {P}.", "At home {N} has {a} {T}.", "{N} kept {a} {T} in a {U}.", "Last week {N} had {a} {T}.",
        "There were {a} {T} on the table of {N}.",
    ),
    "SUM_EVENT": (
        "{N} gets {b} more from {M}.", "At the {P} {M} finds another {b} {T}.", "A friend of {N} brings {b} more.",
        "{N} asked {M} for {b} more and got them.", "In the evening {M} came with another {b} {T}.",
        "{N} went to the {P} for {b} more {T}.",
    ),
    "DOUBLE_EVENT": (
        "{M} wants twice as many.", "{M} brings two times as many.", "{M} owns twice as many.", "In the {U} there are two times as many.",
        "At noon the number doubles.",
    ),
    "HALF_EVENT": (
        "{M} finds half of them.", "{N} sold one half of them.", "{N} lent half of the {T} to {M}.", "{M} buys half of them.",
        "{N} left one half of the {T} at home.",
    ),
    "QUESTIONS": (
        "How many are there now?", "Find the number of {T}.", "How many {T} are there in all?", "What is the number of them?",
    ),
    "SIGN_FIRST": (
        "At the {P} there was a sign: ", "{N} saw the note ", "At home {N} saw a note: ", "The {O} had a sign ",
    ),
}  # fmt: skip

HELD_OUT: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "The {P} was full when {A} and {B} arrived.", "After a cold night {A} met {B} in the {P}.", "{A} asked {B} to wait at the {P}.",
        "While {A} sat in the {P}, {B} came in.",
    ),
    "GIVE_SECOND": (
        "{S} found the {O} on the table and brought it to", "{S} wrote a note to", "{S} must give the {O} back to",
        "{S} ran home for the {O} and gave it to",
    ),
    "PRONOUN_FIRST": (
        "In the evening {N} was at the {P}", "{N} met a friend",
    ),
    "PRONOUN_LINK": (
        ", and at noon {he}", ", but at last {he}",
    ),
    "REFERENCE_FIRST": (
        "{A} and {B} arrived at the {P} together.",
    ),
    "REFERENCE_LAST": (
        "It is true that the {J} one was",
    ),
    "LEADS": (
        "{N} learned from the teacher that ", "People told {N} that ",
    ),
    "CAPITAL_CORES": (
        "{N} asked about the capital of {C}, and the teacher said that it was {K}.",
        "the one city that is called the capital of {C} is {K}.", "many people in the capital of {C} have a home in {K}.",
        "{C} is the home of {N}, and the main city there is {K}.", "in the story {N} went to {C} and lived in the capital, {K}.",
        "the main city that you find in {C} is {K}.",
    ),
    "COLOUR_CORES": (
        "they saw {X}, and the colour of it was {K}.", "the colour to paint {X} with is {K}.", "{N} never saw {X} that was not {K}.",
    ),
    "YOUNG_CORES": (
        "they call a {X} that is young a {K}.", "the teacher asked for the name of a young {X}, and it is {K}.",
        "when a {X} is small, its name is {K}.", "the young one of the {X} in the story was a {K}.",
    ),
    "SUM_OPEN": (
        "In a {U} at home {N} had {a} {T}.", "One day {N} found {a} {T} near the {P}.", "{N} was at the {P} with {a} {T}.",
    ),
    "SUM_EVENT": (
        "{M} left {b} {T} for {N}.", "At last {N} picks up {b} more.", "And {b} more are on the table.",
        "Soon {M} and {N} find another {b}.",
    ),
    "DOUBLE_EVENT": (
        "{M} came with twice as many.", "{N} now needs two times as many.", "The friend of {N} has twice as many.",
    ),
    "HALF_EVENT": (
        "{N} forgot half of them at home.", "{M} gets one half.", "Half of the {T} are for {M}.",
    ),
    "QUESTIONS": (
        "What number of {T} is that?", "How many {T} were there?",
    ),
    "SIGN_FIRST": (
        "{N} wrote a letter: ", "On the table stood the words ",
    ),
}  # fmt: skip

ONCE_FRESH: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "It was evening, and {A} came home from the {P} with {B}.", "{A} knew {B} from the {P}.",
        "At noon {A} and {B} sold a {O} at the {P}.", "{A} wanted to visit the {P} with {B}.",
        "The people in the {P} were waiting for {A} and {B}.",
    ),
    "GIVE_SECOND": (
        "{S} saw a {O} in the {P} and bought it for", "{S} looked in the {U} and handed the {O} to",
        "{S} talked about the {P} and then offered a {O} to", "{S} said that the {O} was for", "{S} came in and told the story to",
    ),
    "PRONOUN_FIRST": (
        "{N} thanked the teacher", "At home {N} found a letter", "Early in the morning {N} was at the {P}",
    ),
    "PRONOUN_LINK": (
        ". Once {he}", ", so at last {he}",
    ),
    "REFERENCE_FIRST": (
        "In the evening {A} was with {B} at the {P}.",
    ),
    "REFERENCE_LAST": (
        "Everyone knows that the {J} one was",
    ),
    "LEADS": (
        "{N} wrote in a letter that ", "The people at the {P} said that ",
    ),
    "CAPITAL_CORES": (
        "{N} wrote to a friend in {C}, and the letter went to the capital, {K}.",
        "the teacher asked for the capital of {C}, and {N} said that it is {K}.", "there is a museum in the capital of {C}, in {K}.",
        "to visit the main city of {C} you must go to {K}.", "if the story is true, the capital of {C} is {K}.",
        "the name that {N} gave for the capital of {C} is {K}.",
    ),
    "COLOUR_CORES": (
        "{N} asked for the colour of {X}, and it is {K}.", "there is {X} in the story, and it is {K}.", "if it is {X}, the colour is {K}.",
    ),
    "YOUNG_CORES": (
        "someone found a young {X} and asked if it was a {K}.", "the young one that the {X} has is called a {K}.",
        "when the {X} had its young, {N} saw the {K}.", "{N} wanted a {X}, but bought a young one, a {K}.",
    ),
    "SUM_OPEN": (
        "{N} came home with {a} {T}.", "The {U} on the table has {a} {T} in it.", "{N} wanted {a} {T} and got them.",
    ),
    "SUM_EVENT": (
        "{M} had {b} more and gave them to {N}.", "In the {P} there are another {b}.", "{N} asked for {b} more and bought them.",
        "Then a friend brought {b} more {T}.",
    ),
    "DOUBLE_EVENT": (
        "{M} found two times as many in the {U}.", "At home there are twice as many.", "{M} said that the number doubles.",
    ),
    "HALF_EVENT": (
        "{M} asked for half of them.", "One half of them are {K}.", "{N} kept half of the {T}.",
    ),
    "QUESTIONS": (
        "How many are there in all?", "What is that in all?",
    ),
    "SIGN_FIRST": (
        "{N} had a book: ", "In the letter {N} read the words ",
    ),
}  # fmt: skip

FRESH: dict[str, tuple[str, ...]] = {
    "GIVE_FIRST": (
        "It was noon, and {A} sat with {B} in the {P}.", "The letter that {A} wrote was for {B}.", "{A} came from {C} to visit {B}.",
        "In a {P} near the sea {A} and {B} had a home.", "Everyone liked {A}, and {B} was a friend.",
    ),
    "GIVE_SECOND": (
        "{S} read the note, smiled and gave the {O} to", "{S} came to the {P} late and handed a {O} to",
        "{S} was not busy and told a story to", "{S} took one {O} from the {U} and sent it to", "at noon {S} bought two {T} for",
    ),
    "PRONOUN_FIRST": (
        "{N} asked the teacher about the {O}", "The letter was for {N}", "At the {P} {N} told a story",
    ),
    "PRONOUN_LINK": (
        ", so at noon {he}", ", because one night {he}",
    ),
    "REFERENCE_FIRST": (
        "{A} was waiting at the {P} with {B}.",
    ),
    "REFERENCE_LAST": (
        "The teacher said that the {J} one was",
    ),
    "LEADS": (
        "In a book {N} read that ", "The {J} girl said that ",
    ),
    "CAPITAL_CORES": (
        "the capital that people in {C} have is {K}.", "when {N} came to the capital of {C}, it was {K}.",
        "{N} and {M} talked about {C}, where the capital is {K}.", "of the main city of {C} people wrote that it is {K}.",
        "the train stops in the capital of {C}, and that is {K}.", "{N} knows the name of the capital of {C}, and it is {K}.",
    ),
    "COLOUR_CORES": (
        "people told us that {X} was {K}.", "{N} knows {X}, and {N} knows that it is {K}.",
        "at the {P} they looked at {X}, and the colour was {K}.",
    ),
    "YOUNG_CORES": (
        "{N} has a {X}, and the young one is a {K}.", "if a {X} is very young, people call it a {K}.",
        "on the farm there was a young {X}, and they called it a {K}.", "a {X} was small once, and then it was called a {K}.",
    ),
    "SUM_OPEN": (
        "{N} looked in the {U} and saw {a} {T}.", "At noon {N} had only {a} {T}.", "The teacher gave {N} {a} {T}.",
    ),
    "SUM_EVENT": (
        "Then {M} came home with {b} more.", "A {J} friend sent {b} more {T}.", "On the table {N} saw {b} more.",
        "The people at the {P} gave {N} {b} more.",
    ),
    "DOUBLE_EVENT": (
        "{N} went home and found twice as many.", "The government needs two times as many.", "In the evening the number doubles.",
    ),
    "HALF_EVENT": (
        "{N} and {M} took half of the {T}.", "{N} must give half of them to {M}.", "One half of the {T} stayed at home.",
    ),
    "QUESTIONS": (
        "What is the number now?", "How many {T} will that be?",
    ),
    "SIGN_FIRST": (
        "{N} sent a note: ", "The sign at the {P} said ",
    ),
}  # fmt: skip

SETS = {"development": DEVELOPMENT, "held_out": HELD_OUT, "once_fresh": ONCE_FRESH, "fresh": FRESH}
