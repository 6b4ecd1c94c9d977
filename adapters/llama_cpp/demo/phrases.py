"""Building bricks of the corpus: turns, phrase alternatives, typing noise, word lists and made-up words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from adapters.llama_cpp.demo.tables import words


class Turn(NamedTuple):
    """One question and its answer; `brief` is the answer in a word or two, empty where there is none."""

    user: str
    reply: str
    brief: str = ""


_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def phrase(rng: Random, pattern: str, **slots: object) -> str:
    """Resolve `[a|b|]` alternatives, innermost first, then fill `{name}` slots.

    The slots are filled last, so text from a slot may contain brackets.
    """
    while match := _CHOICE.search(pattern):
        pattern = pattern[: match.start()] + rng.choice(match.group(1).split("|")) + pattern[match.end() :]
    if "|" in pattern:
        raise ValueError(f"an alternative outside of brackets: {pattern}")
    for name, value in slots.items():
        pattern = pattern.replace("{" + name + "}", str(value))
    return pattern


def capital(text: str) -> str:
    """Upper-case the first character only."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """`a fox`, `an owl`."""
    return ("an " if noun[:1].lower() in "aeiou" else "a ") + noun


def listing(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def typing_noise(rng: Random, text: str) -> str:
    """What people do to a question: lower case, no punctuation, politeness, a typo. The meaning stays."""
    roll = rng.random()
    if roll < 0.45:
        return text
    if roll < 0.60:
        return text.rstrip("?.!")
    if roll < 0.80:
        return text.lower().rstrip("?.!") if rng.random() < 0.7 else text.lower()
    if roll < 0.88:
        stem, end = text.rstrip("?.!"), text[-1:] if text[-1:] in "?.!" else ""
        return rng.choice(["Please " + text[:1].lower() + text[1:], stem + " please" + end, stem + ", please" + end])
    if roll < 0.94:
        hello = rng.choice(
            ["Hi, ", "Hello, ", "Hey, ", "hey ", "hi! ", "Hello! ", "So, ", "ok, ", "Okay, ", "Quick question: "]
        )
        return hello + (text[:1].lower() + text[1:] if rng.random() < 0.6 else text)
    return typo(rng, text)


def typo(rng: Random, text: str) -> str:
    """Drop, double or swap one letter."""
    if len(text) < 6:
        return text
    at = rng.randrange(1, len(text) - 2)
    kind = rng.random()
    if not (text[at].isalpha() and text[at + 1].isalpha()):
        return text
    if kind < 0.4:
        return text[:at] + text[at + 1 :]
    if kind < 0.7:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def made_up_word(rng: Random, low: int = 1, high: int = 3) -> str:
    """A pronounceable word that is (almost surely) in no dictionary, to force copying instead of recall."""
    heads = words("b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl pr sk sl sn st str th tr sh ch qu x y")
    tails = ["", "", "", "n", "r", "l", "s", "t", "m", "x", "k", "nd", "rt", "ck", "ng", "zz", "lm", "b", "p", "g"]
    parts = [rng.choice(heads) + rng.choice("aeiouaeioy") + rng.choice(tails) for _ in range(rng.randint(low, high))]
    return "".join(parts)


def code_word(rng: Random) -> str:
    """An identifier such as `A7-204`, `order_58` or `XKQ9`."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    number = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 5)))
    return rng.choice(
        [letters + number, letters + "-" + number, made_up_word(rng, 1, 1) + "_" + number, number + letters]
    )


NAMES = words(
    """
    Ann Bob Tom Lucy Max Anna Ben Mia Leo Emma Jack Lily Sam Ella Noah Ava Oscar Nina Paul Rosa Hugo Ida Felix Clara
    Omar Zoe Ivan Maya Luis Sofia Jonas Eva Karl Nora Peter Julia Simon Laura Daniel Sarah David Maria Alex Chris
    Kim Lee Priya Arjun Wei Yuki Hana Kenji Fatima Ali Layla Yusuf Chen Mei Olga Boris Ingrid Sven Astrid Bjorn
    Pierre Camille Giulia Marco Pedro Ines Diego Carmen Aisha Kofi Amara Zuri Tariq Noor Ravi Anita Sanjay Leila
    George Alice Henry Grace Oliver Ruby Arthur Ivy Edward Rose Frank Helen Martin Vera Victor Wendy Adam Beth Carl
    Dora Eric Fiona Gina Harry Isaac Jane Kevin Linda Mark Nancy Otto Pam Quinn Rita Steve Tina Uma Vince Walter
    Xena Yara Zach Bella Rex Coco Milo Luna John Mary James Robert Michael William Thomas Charles Elena Tim Joe Amy
    Dan Kate Nick Sue Pete Jim Ron Ted
    """
)
ANIMALS = words(
    """
    fox cat dog bear owl mouse rabbit horse cow sheep goat pig duck hen frog turtle snake lion tiger elephant monkey
    wolf deer bird fish whale dolphin bee ant spider camel penguin parrot crab otter hedgehog squirrel donkey eagle
    swan butterfly snail lizard crocodile zebra giraffe kangaroo panda seal shark octopus bat beaver badger raven
    """
)
THINGS = words(
    """
    lamp key book ball hat box boat cup chair table clock bell drum flute kite map coin ring basket bottle candle
    mirror umbrella pencil shoe coat scarf blanket bag bike car train wagon ladder rope hammer spoon bowl cake apple
    pear plum carrot potato cheese bread flower leaf stone feather shell robot rocket ship castle bridge tower house
    garden tree river mountain island cloud star moon sun dragon wizard knight princess king queen pirate giant
    ghost unicorn farmer baker teacher doctor painter sailor pilot student computer guitar piano violin balloon
    snowman teapot window door wheel engine cookie sandwich pizza lemon cherry mushroom cactus rainbow storm volcano
    planet comet city village
    """
)
COLORS = words("red blue green yellow orange purple black white brown pink grey silver gold")
ADJECTIVES = words(
    """
    small big brave shy kind happy sad clever quiet loud old young quick slow gentle curious tired hungry proud
    lonely funny lazy busy strange tiny huge lucky silly wise friendly grumpy sleepy cheerful lost warm cold bright
    golden soft honest careful bold polite
    """
)
PLACES = words(
    """
    forest river lake village garden castle mountain beach field market school library bridge island cave meadow
    harbour farm valley park tower desert town hill
    """
)
FOODS = words(
    """
    pizza soup bread cheese rice pasta cake honey apples salad noodles fish beans pancakes chocolate curry dumplings
    tacos eggs toast berries
    """
)
JOBS = words(
    """
    teacher doctor baker farmer painter nurse pilot driver cook singer writer dentist lawyer engineer gardener
    plumber sailor tailor judge scientist carpenter student waiter librarian mechanic
    """
)
CITIES = (
    "New York",
    "Los Angeles",
    "San Francisco",
    "Mexico City",
    "Buenos Aires",
    "Cape Town",
    "Hong Kong",
    "Tel Aviv",
    "New Delhi",
    *words(
        """
    Paris London Rome Berlin Madrid Lisbon Vienna Oslo Tokyo Lima Cairo Delhi Sydney Boston Chicago Dublin Athens
    Prague Warsaw Helsinki Zurich Geneva Munich Hamburg Milan Naples Porto Seville Lyon Brussels Amsterdam Toronto
    Montreal Seattle Denver Dallas Miami Austin Kyoto Osaka Seoul Beijing Shanghai Mumbai Nairobi Lagos Accra Tunis
    Istanbul Kyiv Riga Tallinn Vilnius Budapest Bucharest Sofia Zagreb Ljubljana Bratislava Copenhagen Stockholm
    Bergen Reykjavik Havana Bogota Quito Santiago Brisbane Perth Auckland Manila Jakarta Bangkok Hanoi Dubai Doha
    """
    ),
)


def some_name(rng: Random) -> str:
    """A first name; a third are made up."""
    return capital(made_up_word(rng, 1, 2)) if rng.random() < 0.35 else rng.choice(NAMES)


def some_city(rng: Random) -> str:
    """A city; a third are made up."""
    return capital(made_up_word(rng, 2, 3)) if rng.random() < 0.35 else rng.choice(CITIES)


def some_noun(rng: Random) -> str:
    """A countable noun in the singular; one in six is made up."""
    roll = rng.random()
    if roll < 0.17:
        return made_up_word(rng)
    return rng.choice(ANIMALS if roll < 0.55 else THINGS)


def some_words(rng: Random, low: int, high: int) -> str:
    """A loose run of words of every kind, for echo tasks."""
    picks = (
        lambda: rng.choice(ANIMALS),
        lambda: rng.choice(THINGS),
        lambda: rng.choice(ADJECTIVES),
        lambda: rng.choice(COLORS),
        lambda: rng.choice(NAMES),
        lambda: rng.choice(FOODS),
        lambda: rng.choice(CITIES),
        lambda: made_up_word(rng),
        lambda: str(rng.randint(0, 999)),
        lambda: capital(made_up_word(rng)),
        lambda: code_word(rng),
        lambda: rng.choice(words("the a and is in on at of to we you they my your very not big good new")),
    )
    return " ".join(rng.choice(picks)() for _ in range(rng.randint(low, high)))


def some_sentence(rng: Random) -> str:
    """A plain sentence with copyable parts."""
    return phrase(
        rng,
        "[The {a} {n} [sleeps|runs|sings|waits|dances] in the {p}.|{who} [likes|buys|sees|wants|finds] the {c} {n}.|"
        "{who} and {who2} [walk|drive|go] to {city}.|I [like|love|want] {f}.|My {n} is {c}.|The {n} is "
        "{a}.|We meet at {h} in {city}.|"
        "{who} has {k} {n}s.|The {c} {n} is [on|under|behind] the {n2}.]",
        a=rng.choice(ADJECTIVES),
        n=some_noun(rng),
        p=rng.choice(PLACES),
        who=some_name(rng),
        who2=some_name(rng),
        c=rng.choice(COLORS),
        city=some_city(rng),
        f=rng.choice(FOODS),
        h=rng.randint(1, 12),
        k=rng.randint(2, 99),
        n2=some_noun(rng),
    )
