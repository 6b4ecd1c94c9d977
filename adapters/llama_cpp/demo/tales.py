"""Stories, poems, jokes, plain text and fill-in-the-middle passages; the topic of a request comes back in the text."""

from __future__ import annotations

from random import Random

from adapters.llama_cpp.demo.knowledge import FUN_FACTS
from adapters.llama_cpp.demo.phrases import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLORS,
    FOODS,
    JOBS,
    PLACES,
    THINGS,
    Turn,
    capital,
    made_up_word,
    phrase,
    some_name,
    some_noun,
    some_sentence,
    typing_noise,
    with_article,
)
from adapters.llama_cpp.demo.tables import pairs, words

# Slots: {x} the hero's kind, {n} its name, {o} another name, {t} a thing, {c} its colour, {p} and {q} places.
OPENINGS = (
    "Once upon a time there was a {a} {x} named {n}. {n} lived near the {p}.",
    "There was once a {a} {x} in the {p}. Its name was {n}.",
    "In a {p} far away lived a {a} {x} called {n}.",
    "Once upon a time, a {a} {x} named {n} lived in the {p}.",
)
EVENTS = (
    (
        'One day {n} found a {c} {t} in the {q}. "What a nice {t}!" said {n}. The {t} belonged to {o}, '
        "so {n} took it back. {o} was very happy and said thank you."
    ),
    (
        "One morning {n} wanted to see the {q}. The way was long, and {n} got lost. Then {o} came and "
        "showed the way home. {n} and {o} became good friends."
    ),
    (
        'One day it began to rain, and {n} had no place to stay dry. {o} opened the door and said, "Come '
        'in, little {x}!" They sat by the fire and ate {f}.'
    ),
    (
        "{n} wanted to learn to sing, but every song sounded wrong. {o} helped {n} each day. In the end "
        "the {x} sang so well that all the {q} came to listen."
    ),
    (
        "One night {n} heard a strange sound in the {q}. It was {o}, who had lost a {c} {t}. They looked "
        "for it together and found it under a tree."
    ),
    'One day {n} met {o} at the {q}. {o} was hungry, so {n} shared some {f}. "You are a kind {x}," said {o}.',
    (
        "{n} was afraid of the dark. {o} gave the {x} a small {c} lamp. Now {n} could see, and the dark "
        "was not so bad any more."
    ),
    (
        "One day {n} made a big plan: to build a {c} {t}. It fell down two times. {o} helped, and the "
        "third {t} was perfect."
    ),
    (
        "One summer {n} went to the {q} to find a {c} {t}. There was no {t}, but there was {o}, who told "
        "good stories. That was even better."
    ),
    "{n} and {o} ran a race to the {q}. {o} was fast, but {n} did not give up. They came in together and laughed.",
)
LINKS = (
    "The next day {n} went to the {p} again. {o} was already there and waved.",
    "After that, {n} slept well and dreamt of the {q}.",
    "But the story of the {x} was not over yet.",
    "In the evening {n} told {o} all about it.",
    "Soon everyone in the {p} knew the {x}.",
)
ENDINGS = (
    "From that day on, the {x} was never lonely again.",
    "And so the {a} {x} was happy.",
    "That night {n} the {x} went to sleep with a smile.",
    "And {n} and {o} lived happily ever after.",
    "{n} learnt that it is good to have a friend.",
)
POEMS = (
    (
        "The {x} is {a}, the {x} is bright,\nit dances in the morning light.\nIt sings a song for you "
        "and me,\nas free and glad as it can be."
    ),
    (
        "O little {x}, so {a} and {c},\nI made this little poem for you.\nThe wind may blow, the rain "
        "may fall,\nbut you, dear {x}, are best of all."
    ),
    (
        "I saw a {x} beneath a tree,\nit looked around and looked at me.\nI said hello, it said good "
        "day,\nand then the {x} went on its way."
    ),
    (
        "A {x} looked up to see the moon,\nand softly sang a little tune.\nThe stars came out, the night "
        "was deep,\nand soon the {x} fell asleep."
    ),
)
MASS_TOPICS = tuple(
    word.replace("_", " ")
    for word in words(
        """
        love autumn spring summer winter snow rain coffee music friendship time the_sea the_ocean nature hope the_night
        the_sky life recursion programming computers code peace the_wind tea bread school work home sleep the_future
        artificial_intelligence
        """
    )
)
MASS_POEMS = (
    (
        "{X} is near and {x} is far,\nas quiet as the evening star.\nI think of {x} night and day,\nand "
        "hope that {x} is here to stay."
    ),
    (
        "I sat and thought of {x} today,\nand all my worries went away.\nThe world is wide, the light is "
        "new,\nand {x} is kind to me and you."
    ),
)
JOKES = (
    "Why did the computer go to the doctor? It had a virus.",
    "Why was the math book sad? It had too many problems.",
    "What do you call a bear with no teeth? A gummy bear.",
    "Why did the chicken cross the road? To get to the other side.",
    "What is orange and sounds like a parrot? A carrot.",
    "Why do programmers mix up Halloween and Christmas? Because Oct 31 equals Dec 25.",
    "What did zero say to eight? Nice belt!",
    "Why do bees hum? Because they do not know the words.",
    "What do you call a sleeping bull? A bulldozer.",
    "Why did the token cross the context? To get to the other window.",
)
RIDDLES = (
    ("What has keys but cannot open locks?", "A piano."),
    ("What has hands but cannot clap?", "A clock."),
    ("What gets wetter the more it dries?", "A towel."),
    ("What has teeth but cannot bite?", "A comb."),
)
HERO_NAMES = words("Max Lily Tom Mia Ben Anna Leo Rosa Sam Ella Otto Nina")


def story_text(rng: Random, hero: str, name: str, other: str, events: int) -> str:
    """A story with the given hero and `events` episodes; `events=0` gives two or three sentences."""
    slots = {
        "a": rng.choice(ADJECTIVES),
        "x": hero,
        "n": name,
        "o": other,
        "c": rng.choice(COLORS),
        "t": rng.choice(THINGS),
        "f": rng.choice(FOODS),
        "p": rng.choice(PLACES),
        "q": rng.choice(PLACES),
    }
    parts = [rng.choice(OPENINGS)]
    picks = rng.sample(EVENTS, max(events, 1))
    for at, event in enumerate(picks):
        if at:
            parts.append(rng.choice(LINKS))
        parts.append(event if events else event.split(". ")[0].rstrip(".") + ".")
    parts.append(rng.choice(ENDINGS))
    text = " ".join(parts)
    if slots["a"][0] in "aeiou":
        text = text.replace("a {a}", "an {a}")
    if slots["c"] == "orange":
        text = text.replace("a {c}", "an {c}")
    return phrase(rng, text, **slots)


def hero_names(rng: Random) -> tuple[str, str]:
    """Two different first names out of a few: names that the model must invent should be easy to invent."""
    first, second = rng.sample(HERO_NAMES, 2)
    return first, second


def story_turns(rng: Random) -> list[Turn]:
    """A story on request: the animal, thing or person asked for is the hero."""
    hero, (name, other) = some_noun(rng), hero_names(rng)
    adjective = rng.choice(ADJECTIVES) + " " if rng.random() < 0.15 else ""
    if rng.random() < 0.1:
        hero = rng.choice(JOBS)
    size = rng.random()
    word, events = (
        ("[very short |tiny |one-sentence |two sentence |three sentence |one line ]", 0)
        if size < 0.15
        else ("[short |little |||]", 1)
        if size < 0.85
        else ("[long |longer ]", rng.randint(3, 4))
        if size < 0.97
        else ("very long ", rng.randint(6, 9))
    )
    about = with_article(adjective + hero)
    roll = rng.random()
    if roll < 0.15:
        name = some_name(rng)
        about += rng.choice([" named ", " called "]) + name
    elif roll < 0.22:
        name = some_name(rng)
        about = f"{name} the {hero}"
    elif roll < 0.30:
        name = about = some_name(rng)
        hero = rng.choice(["boy", "girl", "child"])
    elif roll < 0.38:
        about = hero + "s" if hero[-1] not in "sxzhy" else hero
    elif roll < 0.46:
        about += f" and {with_article(some_noun(rng))}"
    if roll < 0.5 or rng.random() < 0.9:
        ask = phrase(
            rng,
            (
                f"[Tell me|Write|Tell|Write me|Can you tell me|Please tell me|I want|Give me|Could you write|"
                f"Make up|Tell us] a {word}[story|story|story|tale|bedtime story|fairy tale] [about|of|about|"
                f"about] {{x}}[.|]"
            ),
            x=about,
        )
    else:
        hero = rng.choice(["fox", "mouse", "bear"])
        ask = phrase(
            rng,
            (
                f"[Tell me a {word}story.|Write a {word}story.|tell me a story|A {word}story please|story|I want "
                f"to hear a story.|Can you tell stories?|Can you tell me a story?|Tell me something nice.]"
            ),
        )
    turns = [
        Turn(
            typing_noise(rng, ask) if hero in THINGS + ANIMALS and name not in about else ask,
            story_text(rng, hero, name, other, events),
        )
    ]
    if rng.random() < 0.15:
        again = rng.choice(ANIMALS)
        ask = phrase(
            rng,
            "[Tell me another one about {x}.|Now about {x}.|Another one about {x}|And one about {x}.]",
            x=with_article(again),
        )
        turns.append(Turn(ask, story_text(rng, again, *hero_names(rng), events)))
    return turns


def poem_turns(rng: Random) -> list[Turn]:
    """A four-line poem about the thing asked for."""
    hero = some_noun(rng)
    mass = rng.random() < 0.3
    if mass:
        hero = rng.choice(MASS_TOPICS)
    ask = phrase(
        rng,
        (
            "[Write|Write me|Tell me|Make|Give me|Can you write|Compose] a [short |little |small |][poem|"
            "poem|poem|verse|rhyme|haiku|song] about {x}[.|]"
        ),
        x=hero if mass else rng.choice([with_article(hero), "the " + hero, with_article(hero)]),
    )
    text = phrase(
        rng,
        rng.choice(MASS_POEMS if mass else POEMS),
        x=hero,
        X=capital(hero),
        a=rng.choice(["small", "brave", "kind", "quick", "gentle"]),
        c="true",
    )
    return [Turn(typing_noise(rng, ask) if hero in THINGS + ANIMALS else ask, text)]


def fact_turns(rng: Random) -> list[Turn]:
    """A fun fact, and the next ones of the table on request."""
    known = FUN_FACTS
    at = 0 if rng.random() < 0.4 else rng.randrange(len(known))
    ask = phrase(
        rng,
        (
            "[Tell me|Give me|Do you know|Share|Say] [a fun fact|a fact|an interesting fact|something "
            "interesting|a random fact|something new][.|?|]"
        ),
    )
    turns = [Turn(typing_noise(rng, ask), known[at])]
    while rng.random() < 0.35 and len(turns) < 4:
        at = (at + 1) % len(known)
        turns.append(
            Turn(
                phrase(rng, "[Another one.|Tell me another one.|One more.|another fact please|More|Another]"), known[at]
            )
        )
    return turns


def joke_turns(rng: Random) -> list[Turn]:
    """A joke or a riddle, and the next ones of the table on request."""
    if rng.random() < 0.2:
        at = rng.randrange(len(RIDDLES))
        ask = phrase(rng, "[Tell me a riddle.|Give me a riddle.|Do you know a riddle?|A riddle please|riddle]")
        turns = [Turn(typing_noise(rng, ask), RIDDLES[at][0])]
        if rng.random() < 0.6:
            turns.append(
                Turn(
                    phrase(rng, "[What is the answer?|I do not know.|Tell me.|I give up.|What is it?]"), RIDDLES[at][1]
                )
            )
        return turns
    at = 0 if rng.random() < 0.4 else rng.randrange(len(JOKES))
    ask = phrase(
        rng,
        (
            "[Tell me a joke|Tell a joke|Do you know a joke|Make me laugh|Say something funny|A joke please|"
            "joke|Give me a joke|Can you tell me a joke|Tell me something funny|Do you know any jokes|Know "
            "any jokes|I want to hear a joke|Tell me a short joke|tell me a funny joke][.|?|]"
        ),
    )
    turns = [Turn(typing_noise(rng, ask), JOKES[at])]
    while rng.random() < 0.45 and len(turns) < 5:
        at = (at + 1) % len(JOKES)
        ask = phrase(
            rng,
            (
                "[Tell me another one.|Another one|Another one please.|One more.|tell me another|Another joke|"
                "Tell me another joke.|One more joke please.|More|again]"
            ),
        )
        turns.append(Turn(ask, JOKES[at]))
    return turns


def plain_story(rng: Random) -> str:
    """Plain prose for completions without a chat: a story or a few encyclopaedic sentences."""
    if rng.random() < 0.85:
        text = story_text(
            rng,
            rng.choice(ANIMALS + JOBS) if rng.random() < 0.7 else some_noun(rng),
            *hero_names(rng),
            rng.randint(1, 2),
        )
        start = text.find("One day")
        return text[start:] if start > 0 and rng.random() < 0.15 else text
    return " ".join(some_sentence(rng) for _ in range(rng.randint(2, 5)))


PYTHON_SNIPPETS = (
    "def add(a, b):\n    return a + b\n",
    "def sub(a, b):\n    return a - b\n",
    "def mul(a, b):\n    return a * b\n",
    "def square(x):\n    return x * x\n",
    'def hello(name):\n    return "Hello, " + name\n',
    "def double(x):\n    return 2 * x\n",
    "def is_even(n):\n    return n % 2 == 0\n",
    "def is_odd(n):\n    return n % 2 == 1\n",
    "for i in range(10):\n    print(i)\n",
    'print("Hello, world!")\n',
    "def maximum(a, b):\n    if a > b:\n        return a\n    return b\n",
    "def minimum(a, b):\n    if a < b:\n        return a\n    return b\n",
    "def first(items):\n    return items[0]\n",
    "def last(items):\n    return items[-1]\n",
    "def negate(x):\n    return -x\n",
)


def middle_parts(rng: Random) -> tuple[str, str, str]:
    """`(prefix, middle, suffix)` of a short text or a piece of code, mostly cut at word borders."""
    roll = rng.random()
    if roll < 0.25:
        text = rng.choice(PYTHON_SNIPPETS)
    elif roll < 0.4:
        country, city = rng.choice(pairs("France:Paris Italy:Rome Germany:Berlin Spain:Madrid Japan:Tokyo Egypt:Cairo"))
        text = f"The capital of {country} is {city}."
    elif roll < 0.8:
        text = rng.choice(
            [
                some_sentence(rng),
                f"My name is {some_name(rng)} and I live in {rng.choice(CITIES)}.",
                f"The {rng.choice(ANIMALS)} says hello to the {made_up_word(rng)}.",
            ]
        )
    else:
        text = story_text(rng, rng.choice(ANIMALS), *hero_names(rng), rng.choice([0, 1]))
    if rng.random() < 0.8:
        borders = [at for at, char in enumerate(text) if char in " \n(,." and 0 < at < len(text)]
    else:
        borders = list(range(1, len(text)))
    left = rng.choice(borders) if borders else 1
    rights = [at for at in borders if left < at <= left + 60] or [len(text)]
    right = rng.choice(rights)
    if rng.random() < 0.5:  # put the space in front of the gap into the prefix, as editors do
        left += text[left : left + 1] == " " and left + 1 < right
    return text[:left], text[left:right], text[right:]
