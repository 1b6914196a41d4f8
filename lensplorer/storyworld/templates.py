"""The wordings of the toy world. Every sentence is a first part times a second part, so that a model cannot learn whole sentences.

These are the wordings that training sees; those it never sees are in `held_out`.
"""

from __future__ import annotations


def _times(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """Each of the first parts with each of the second, and so on."""
    whole: tuple[str, ...] = ("",)
    for part in parts:
        whole = tuple(before + after for before in whole for after in part)
    return whole


# Two people and a place, then the giver and the thing; the answer is the other person.
GIVE_FIRST = (
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
    "One night {A} walked with {B} to the {P}.", "The {J} friends {A} and {B} met at the {P}.", "In the morning {A} was outside the {P} with {B}.",
    *_times(
        ("", "Yesterday ", "One night ", "In the morning "), ("{A} and {B} ",),
        ("walked to the {P}.", "were near the {P}.", "talked in the {P}.", "came to the {P}.", "had a {O} in the {P}.", "saw the {P}."),
    ),
    "{A} thanked {B} at the {P}.", "When {A} looked at the {P}, {B} was there.", "{A} lived with {B} near the {P}.",
    "{A} called {B} from the {P}.", "The {O} of {A} and {B} was at the {P}.",
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
GIVE_SECOND = (
    *(f"{{S}} {before}{give}" for before in _GIVE_BEFORE for give in _GIVE),
    "{S} decided to give the {O} to",
    "{S} wanted to pass a {O} to",
    "{S} bought a {O} for",
    "{S} found a {O} and gave it to",
    "{S} had a {O} for",
    "{S} took the {O} and carried it to",
)
GIVE_BETWEEN = (
    "The sun was shining.", "It was a cold day.", "There was a {O} on the table.", "A {G} ran by.", "The {P} was full of people.",
    "They talked until evening.", "Nobody else was there.",
)  # fmt: skip
GIVE_LINK = ("Then", "Later", "Soon", "Quickly", "At last")
GIVE_END = (".", " with a smile.", " at once.", " before they left.")

# A person, a link, and the pronoun that must follow.
PRONOUN_FIRST = (
    "{N} was {J}", "{N} went to the {P}", "{N} lost the {O}", "{N} stayed at home", "{N} found a {O}", "{N} ran to the {P}",
    "{N} could not find the {O}", "Yesterday {N} was {J}", "{N} looked for the {O}", "Last week {N} came back from the {P}",
    "{N} sat in the {P}", "{N} bought a {O}", "At noon {N} was at the {P}", "{N} had a {O}", "{N} asked for a {O}",
    "In the {P} {N} saw a {G}", "{N} read a letter", "{N} was alone",
)  # fmt: skip
PRONOUN_LINK = (
    " because {he}", ", so {he}", ", and then {he}", ". Later {he}", ". Soon {he}", ", but {he}", ". At noon {he}", " after {he}",
    *_times((", and", ", but", ", so"), (" in the evening", " in the morning", " once", " before noon"), (" {he}",)),
    ". Then {he}", ". At last {he}", ". In the evening {he}", " before {he}", " until {he}", ", because {he}", ". One night {he}", " and {he}",
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
LEADS = (
    "", "We learned that ", "Everyone knows that ", "It is true that ", "The teacher said that ", "Remember that ", "{N} knows that ",
    "In class {N} read that ", "It is a fact that ", "{N} told us that ", "At last {N} learned that ", "Someone told {N} that ",
    "In the {P} {N} learned that ", "{N} wrote that ", "The story said that ", "The letter said that ",
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
_CAPITAL_PLAIN = _times(_CAPITAL_SUBJECTS, _CAPITAL_LINKS)
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
_CAPITAL_VISITED = _times(
    ("{N} went to ", "{N} visited ", "they visited ", "{N} lives in ", "{N} has a friend in ", "{N} likes ", "people like ", "{N} told us about ",
     "{N} must visit ", "{N} came back from ", "{N} wanted to visit ", "{N} and {M} met in "),
    ("the capital of {C}", "{C}'s capital", "the capital city of {C}", "the main city of {C}", "the main city in {C}"),
    (", {K}.", ", called {K}.", ", the city of {K}.", ". It is {K}.", ". It is called {K}.", ", and it is {K}.", ", and that is {K}."),
)  # fmt: skip
# a country, then its capital
_CAPITAL_OF_COUNTRY = _times(
    ("{N} went to {C}", "{N} lives in {C}", "{N} is from {C}", "{N} likes {C}", "{N} told us about {C}", "they talked about {C}",
     "{N} has a friend in {C}", "{N} asked about {C}", "{N} never visited {C}", "there was a story about {C}"),
    (", and its capital is {K}.", ", and the capital there is {K}.", ". The capital is {K}.", ". The main city there is {K}.",
     ". The capital is called {K}.", ", and the name of its capital is {K}.", ", and people there call the capital {K}.",
     ". There the capital city is {K}.", ", so {M} told us about the capital, {K}.", ", but not its capital, {K}."),
)  # fmt: skip
# its people, and the capital
_CAPITAL_OF_PEOPLE = _times(
    ("people in {C} ", "someone from {C} ", "{N}, who lives in {C}, ", "the people of {C} ", "a friend from {C} ", "in {C} {N} "),
    ("liked ", "visited ", "talked about ", "knew ", "went to ", "told us about ", "walked to "),
    ("the capital", "the main city", "the capital city", "the old capital"),
    (", {K}.", ", called {K}.", ", the city of {K}.", ". It is {K}."),
)  # fmt: skip
# what it is called, and what is in it
_CAPITAL_NAMED = (
    *_times(
        ("people in {C} ", "a friend in {C} ", "the people of {C} ", "people from {C} ", "in {C} they "),
        ("call ", "called ", "must call ", "never call "), ("the capital {K}.", "their capital {K}.", "the main city {K}.", "the capital city {K}."),
    ),
    *_times(
        ("the government of {C} ", "{C}'s government ", "the main office of {C} ", "the old castle of {C} "),
        ("is in {K}.", "was in {K}.", "sat in {K}.", "stayed in {K}.", "has an office in {K}.", "is at home in {K}.", "is in the city of {K}."),
    ),
)  # fmt: skip
CAPITAL_CORES = (
    *[_CAPITAL_PLAIN] * 4, *[_CAPITAL_SINGLE] * 2, *[_CAPITAL_VISITED] * 2, *[_CAPITAL_OF_COUNTRY] * 2, _CAPITAL_OF_PEOPLE,
    *[_CAPITAL_NAMED] * 2,
)  # fmt: skip
CAPITAL_REVERSED = ("{K} is the capital of {C}.", "{K} is a city in {C}.", "the city of {K} is in {C}.")
COLOUR_CORES = (
    (
        "the colour of {X} is {K}.", "{X} is {K}.", "{X} has the colour {K}.", "if you paint {X}, you need {K}.", "{X} looks {K}.",
        "when people think of {X}, they think of {K}.", "{N} saw that {X} is {K}.",
    ),
    _times(("{X}", "the colour of {X}"), (" must be {K}.", " was {K}.", " is still {K}.", ", {N} said, is {K}.", ", as {N} told us, is {K}.")),
    _times(
        ("{N} saw {X}", "{N} found {X}", "they talked about {X}", "{N} told us about {X}", "{N} looked for {X}", "people think of {X}"),
        (", and it was {K}.", ". It was {K}.", ", and its colour was {K}.", ". The colour is {K}.", ", and it must be {K}."),
    ),
)  # fmt: skip
_YOUNG_ONE = ("a young {X}", "the young of a {X}", "a small {X}")
YOUNG_CORES = (
    *[_times(
        (*_YOUNG_ONE, "a {X} that is young", "a {X}, when it is young,", "a new {X}", "the {X}'s young", "one young {X}", "the young of the {X}",
         "when it is young, a {X}"),
        (" is called a {K}.", " is a {K}.", " was a {K}.", " must be a {K}.", " will be called a {K}.", " has the name {K}.", " is still a {K}.",
         ", {N} said, is a {K}.", ", as {N} told us, is called a {K}.", " is the {K}.", " is called the {K}."),
    )] * 3,
    _times(("the name for ", "the name of ", "the word of {N} for "), _YOUNG_ONE, (" is {K}.", " must be {K}.", ", {N} said, is {K}.", " was {K}.")),
    _times(
        ("you call ", "the friends of {N} call ", "{N} called ", "people from {C} call "), (*_YOUNG_ONE, "the young {X}", "the young of the {X}"),
        (" a {K}.", " the {K}."),
    ),
    *[_times(
        ("{N} had a {X}", "{N} saw a {X}", "at the {P} there was a {X}", "{N} found a young {X}", "there was a {X} at the {P}",
         "{N} has a young {X}", "{N} lost a {X}", "{N} looked for the {X}", "the {X} of {N} was at the {P}"),
        (" and its {K}.", " with its {K}.", ", and the young one was a {K}.", ", and its young was a {K}.", ". It had a {K}.",
         ". It was with its {K}.", ", and when it was young, it was a {K}.", ". It was once a {K}.", ", and near it was its {K}."),
    )] * 2,
    *[_times(
        ("{N} had a young {X}", "{N} saw the young {X}", "{N} asked about a young {X}", "there was a young {X} at the {P}",
         "{N} told us about a small {X}", "the {X} had young"),
        (" and said that it was a {K}.", ", and {M} said that it was a {K}.", " and wrote that it is a {K}.", ", and {M} called it the {K}.",
         ", and it is called a {K}.", ". The name for it is {K}.", ", so it must be a {K}.", ". It was a {K}.", ", a {K}."),
    )] * 2,
    (
        "a {X} was once a {K}.", "if a {X} has young, it has a {K}.", "it was a {X}, but once it was a {K}.", "when a {X} was young, it was a {K}.",
        "a {X} has a young one, the {K}.", "the {X} was waiting for its {K}.", "a {X} and its {K} were at the {P}.",
        "if you find a young {X}, you find a {K}.", "people who have a young {X} have a {K}.",
    ),
    (
        "a {K} grows up to be a {X}.", "a {K} is a young {X}.", "a {K} is the young of a {X}.", "a {K} will be a {X}.",
        "the {K} followed the {X}.", "{N} gave the {K} back to the {X}.", "{N} saw that the {K} was a young {X}.",
    ),
)  # fmt: skip

# Worded problems: an opening times an event times a question.
SUM_OPEN = (
    "{N} has {a} {T}.", "There are {a} {T} in the {U} of {N}.", "{N} starts the day with {a} {T}.", "{N} owns {a} {T}.",
    "In the morning {N} counts {a} {T}.", "{N} takes {a} {T} to the {P}.", "In the {U} {N} finds {a} {T}.", "{N} buys {a} {T} at the {P}.",
    "At noon {N} has {a} {T}.",
    *_times(
        ("", "Yesterday ", "In the evening ", "One day "), ("{N} ",),
        ("has ", "had ", "owns ", "finds ", "found ", "bought ", "buys ", "counts ", "takes ", "took ", "got ", "gets "), ("{a} {T}",),
        (".", " at home.", " in the {U}.", " at the {P}."),
    ),
    "There were {a} {T} at the {P}.", "{N} told us about {a} {T}.", "The {U} of {N} has {a} {T} in it.",
)  # fmt: skip
SUM_EVENT = (
    "{M} gives {N} {b} more.", "Then {N} buys {b} more.", "{N} finds {b} more at the {P}.", "{M} brings {b} more.",
    "On the way home {N} picks up {b} more.", "{M} adds {b} {T}.", "Later {N} gets another {b}.",
    "{N} has {b} more at home.", "There are {b} more in the {U}.", "{N} takes another {b} {T} from the {U}.", "{M} leaves {b} more with {N}.",
    "Later {M} brings another {b} {T}.",
    *_times(
        ("", "Then ", "Later ", "At noon ", "Soon "),
        ("{N} buys ", "{N} finds ", "{N} gets ", "{N} takes ", "{N} picks up ", "{N} found ", "{N} bought ", "{N} got ", "{N} had ",
         "{M} brings ", "{M} adds ", "{M} brought ", "{M} gives {N} ", "{M} gave {N} ", "{M} sent {N} ", "{M} handed {N} ", "{M} offered {N} ",
         "there are ", "there were ", "{N} wants ", "{N} needs "),
        ("{b} more", "another {b}", "{b} more {T}", "another {b} {T}"),
        (".", " at the {P}.", " on the way home.", " in the {U}."),
    ),
)  # fmt: skip
DOUBLE_EVENT = (
    "{M} has twice as many.", "Then the number doubles.", "{N} wants to double that.", "{M} needs two times as many.",
    "At the {P} there are twice as many.", "{M} finds twice as many.", "{N} gets two times as many.", "{M} buys twice as many.",
    *_times(
        ("", "Then ", "Later ", "At noon "), ("{M} ", "{N} "), ("had ", "found ", "bought ", "got ", "needed "),
        ("twice as many.", "two times as many."),
    ),
    "Soon the number doubles.", "There were twice as many at the {P}.",
)  # fmt: skip
HALF_EVENT = (
    "{N} gives half of them to {M}.", "{N} loses half of them.", "Half of them are {K}.", "{M} takes one half of the {T}.",
    "{N} leaves half of the {T} at the {P}.", "{M} picks up half of them.", "{N} gives one half of the {T} to {M}.",
    "At the {P} {N} loses half of them.",
    *_times(
        ("", "Then ", "Later ", "At noon "), ("{M} took ", "{N} lost ", "{M} bought ", "{M} has ", "{N} found "), ("half of ", "one half of "),
        ("them.", "the {T}."),
    ),
    "{N} sent half of them to {M}.", "Half of them were at the {P}.",
)  # fmt: skip
QUESTIONS = (
    "How many {T} is that?", "What is the number of {T} now?", "How many is that in all?", "Find the number.", "How many {T} are there?",
    "How many {T} is that now?", "What is the number?", "How many {T} are there now?", "Find the number in all.", "What is the number of {T} in all?",
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
