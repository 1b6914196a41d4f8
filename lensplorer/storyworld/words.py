"""What the toy world is made of: people, places, things and the facts that hold there."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


WOMEN = _words("""
Mary Anna Emma Alice Sarah Laura Julia Clara Rosa Nora Lucy Ella Grace Helen Ruth Jane Kate Lily Eva Mia Zoe Ida Amy
Vera Sophie Olivia Hannah Martha
""")
MEN = _words("""
John Tom Jack Peter Paul David Daniel Adam Max Leo Sam Ben Oscar Henry Frank George Simon Mark Luke Noah Hugo Felix
Ivan Carl Victor Thomas Martin Robert
""")
NAMES = sorted(WOMEN + MEN)
HELD_OUT_NAMES = ("Vera", "Martha", "Zoe", "Ivan", "Felix", "Robert")  # never in an indirect-object sentence of training

PLACES = _words("""
shop park school station market library garden beach museum bakery river forest hotel farm castle harbour theatre
kitchen office church
""")
THINGS = _words("book ball key letter map coin lamp bag cup hat flower ring box drum kite bottle ticket basket clock pencil")
COUNTED = _words("apples books pens coins cards stones eggs shells stamps cakes balls keys")
ADJECTIVES = _words("tired happy sad hungry angry late cold lost busy proud thirsty sick bored lucky quiet tall")
COLOURS = _words("red blue green yellow black white brown orange pink grey")
ANIMALS = _words("dog cat horse cow sheep hen goat duck fox bear bird fish mouse rabbit")
FRUITS = _words("apple pear plum lemon peach melon cherry grape")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "England": "London",
    "Ireland": "Dublin", "Scotland": "Edinburgh", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Iceland": "Reykjavik", "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest",
    "Greece": "Athens", "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Serbia": "Belgrade", "Croatia": "Zagreb", "Belgium": "Brussels", "Switzerland": "Bern", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Morocco": "Rabat", "Senegal": "Dakar", "Ghana": "Accra", "Japan": "Tokyo", "China": "Beijing",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Iran": "Tehran", "Iraq": "Baghdad", "Canada": "Ottawa", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Australia": "Canberra",
}  # fmt: skip
COLOUR_OF = {
    "grass": "green", "snow": "white", "the sky": "blue", "blood": "red", "coal": "black", "a lemon": "yellow",
    "a carrot": "orange", "chocolate": "brown", "milk": "white", "the sea": "blue", "a banana": "yellow", "a tomato": "red",
    "a frog": "green", "an elephant": "grey", "a flamingo": "pink", "a raven": "black",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "hen": "chick", "horse": "foal", "bear": "cub",
    "duck": "duckling",
}  # fmt: skip

REPEATED = sorted(  # the words of a repeated sequence; each is one token with a space before it
    {*NAMES, *PLACES, *THINGS, *COUNTED, *ADJECTIVES, *COLOURS, *ANIMALS, *FRUITS, *CAPITALS, *CAPITALS.values()}
)

# In the vocabulary, and in no document: room for wordings to come.
SPARE = _words("reached over passed quickly standing returned while waited country say which where right know sells")


def pronouns(name: str) -> tuple[str, str, str]:
    """Subject, object and possessive pronoun of a person.

    >>> pronouns("Mary")
    ('she', 'her', 'her')
    """
    return ("she", "her", "her") if name in WOMEN else ("he", "him", "his")
