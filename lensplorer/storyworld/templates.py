"""The wordings of the toy world. Every sentence is a first part times a second part, so that a model cannot learn whole sentences.

Each table has a part that training sees and a part held out of it. Held-out wordings use only words that training knows.
"""

from __future__ import annotations

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
)  # fmt: skip
GIVE_FIRST_HELD_OUT = (
    "Once {A} and {B} were in the {P},", "{A} and {B} were waiting together near the {P}.",
    "Last night {A} talked with {B} outside the {P}.", "The friends {A} and {B} stayed in the {P} until evening.",
)  # fmt: skip
_GIVE_BEFORE = (
    "", "smiled and ", "was kind and ", "walked to the {P} and ", "sat there and ", "found the {O} and ", "was {J}, but ",
    "bought a {O} and ",
)  # fmt: skip
_GIVE = (
    "gave a {O} to", "handed the {O} to", "sent the {O} to", "offered a {O} to", "brought a {O} for", "showed the {O} to", "threw a {O} to",
    "lent the {O} to", "sold the {O} to", "told a story to", "said hello to",
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
GIVE_SECOND_HELD_OUT = (
    "{S} came back and gave the {O} to", "{S} kept a {O} for", "{S} asked for a {O} and sent it to", "{S} carried the {O} to",
)  # fmt: skip
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
    "{N} sat in the {P}", "{N} bought a {O}",
)  # fmt: skip
PRONOUN_FIRST_HELD_OUT = ("{N} sat near the {P}", "One day {N} saw a {O}", "{N} left the {O} at the {P}")
PRONOUN_LINK = (
    " because {he}", ", so {he}", ", and then {he}", ". Later {he}", ". Soon {he}", ", but {he}", ". At noon {he}", " after {he}",
)  # fmt: skip
PRONOUN_LINK_HELD_OUT = (" and then {he}", ", but then {he}")
PRONOUN_LAST = (
    "was {J}", "wanted a {O}", "had no {O}", "liked the {P}", "met a friend", "saw a {G}", "felt {J}", "needed the {O}",
    "lost {his} {O}", "called {his} friend", "forgot {his} {O}",
)  # fmt: skip
REFERENCE_FIRST = (
    "{A} and {B} were at the {P}.", "{A} met {B} at the {P}.", "{A} and {B} sat in the {P}.", "At the {P} there were {A} and {B}.",
    "One day {A} saw {B} near the {P}.",
)  # fmt: skip
REFERENCE_FIRST_HELD_OUT = ("Last week {A} and {B} came to the {P}.",)
REFERENCE_LAST = ("The one who was {J} was", "So the {J} one was", "The {J} one was")
REFERENCE_LAST_HELD_OUT = ("The friend who was {J} was",)

# Facts: a lead times a core. {K} is the answer.
LEADS = (
    "", "We learned that ", "Everyone knows that ", "It is true that ", "The teacher said that ", "Remember that ", "{N} knows that ",
    "In class {N} read that ", "It is a fact that ", "{N} told us that ",
)  # fmt: skip
LEADS_HELD_OUT = ("They told us that ", "{N} said that ")
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
CAPITAL_CORES = (
    *(subject + link for subject in _CAPITAL_SUBJECTS for link in _CAPITAL_LINKS),
    "people in {C} call their capital {K}.", "in {C} the capital is {K}.", "{C} has a capital called {K}.",
    "a train to the capital of {C} stops in {K}.", "someone who lives in the capital of {C} lives in {K}.",
    "if you visit the capital of {C}, you are in {K}.", "{N} went to {C} and saw its capital, {K}.", "the government of {C} sits in {K}.",
    "in {C} there is a capital called {K}.", "{N} lives in the capital of {C}, in {K}.", "people who visit the capital of {C} visit {K}.",
    "{C} has a main city, and its name is {K}.",
)  # fmt: skip
CAPITAL_CORES_HELD_OUT = (
    "{C}'s main city is {K}.", "the capital city in {C} is called {K}.", "the capital of {C}, the teacher said, is {K}.",
    "the main city of {C} has to be {K}.", "the name of the main city of {C} is {K}.", "the capital of {C} was once called {K}.",
)  # fmt: skip
CAPITAL_REVERSED = ("{K} is the capital of {C}.", "{K} is a city in {C}.", "the city of {K} is in {C}.")
COLOUR_CORES = (
    "the colour of {X} is {K}.", "{X} is {K}.", "{X} has the colour {K}.", "if you paint {X}, you need {K}.", "{X} looks {K}.",
    "when people think of {X}, they think of {K}.", "{N} saw that {X} is {K}.",
)  # fmt: skip
COLOUR_CORES_HELD_OUT = ("people told {N} that {X} is {K}.", "to paint {X} you need {K}.")
YOUNG_CORES = (
    "a young {X} is called a {K}.", "the young of a {X} is a {K}.", "a {X} was once a {K}.", "a {K} grows up to be a {X}.",
    "the name for a young {X} is {K}.",
)  # fmt: skip
YOUNG_CORES_HELD_OUT = ("people call a young {X} a {K}.",)

# Worded problems: an opening times an event times a question.
SUM_OPEN = (
    "{N} has {a} {T}.", "There are {a} {T} in the {U} of {N}.", "{N} starts the day with {a} {T}.", "{N} owns {a} {T}.",
    "In the morning {N} counts {a} {T}.", "{N} takes {a} {T} to the {P}.", "In the {U} {N} finds {a} {T}.", "{N} buys {a} {T} at the {P}.",
    "At noon {N} has {a} {T}.",
)  # fmt: skip
SUM_OPEN_HELD_OUT = ("{N} brings {a} {T} to the {P}.", "At home {N} has {a} {T}.")
SUM_EVENT = (
    "{M} gives {N} {b} more.", "Then {N} buys {b} more.", "{N} finds {b} more at the {P}.", "{M} brings {b} more.",
    "On the way home {N} picks up {b} more.", "{M} adds {b} {T}.", "Later {N} gets another {b}.",
    "{N} has {b} more at home.", "There are {b} more in the {U}.", "{N} takes another {b} {T} from the {U}.", "{M} leaves {b} more with {N}.",
    "Later {M} brings another {b} {T}.",
)  # fmt: skip
SUM_EVENT_HELD_OUT = ("{N} gets {b} more from {M}.", "At the {P} {M} finds another {b} {T}.")
DOUBLE_EVENT = (
    "{M} has twice as many.", "Then the number doubles.", "{N} wants to double that.", "{M} needs two times as many.",
    "At the {P} there are twice as many.", "{M} finds twice as many.", "{N} gets two times as many.", "{M} buys twice as many.",
)  # fmt: skip
DOUBLE_EVENT_HELD_OUT = ("{M} wants twice as many.", "{M} brings two times as many.")
HALF_EVENT = (
    "{N} gives half of them to {M}.", "{N} loses half of them.", "Half of them are {K}.", "{M} takes one half of the {T}.",
    "{N} leaves half of the {T} at the {P}.", "{M} picks up half of them.", "{N} gives one half of the {T} to {M}.",
    "At the {P} {N} loses half of them.",
)  # fmt: skip
HALF_EVENT_HELD_OUT = ("{M} finds half of them.", "{N} sold one half of them.")
QUESTIONS = (
    "How many {T} is that?", "What is the number of {T} now?", "How many is that in all?", "Find the number.", "How many {T} are there?",
)  # fmt: skip
QUESTIONS_HELD_OUT = ("How many are there now?", "Find the number of {T}.")

# Things that open and must close: the same phrase stands in every kind of bracket.
SIGN_FIRST = (
    "{N} read a sign: ", "At the {P} {N} saw the words ", "The letter said ", "{N} wrote ", "On the {O} stood ", "The {O} of {N} ",
    "There was a note ", "{N} found a {O} ",
)  # fmt: skip
SIGN_FIRST_HELD_OUT = ("At the {P} there was a sign: ", "{N} saw the note ")
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
