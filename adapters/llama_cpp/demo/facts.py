"""Questions about facts: each function draws one short exchange from the tables of `knowledge` and `definitions`."""

from __future__ import annotations

from random import Random

from adapters.llama_cpp.demo import definitions, knowledge
from adapters.llama_cpp.demo.phrases import Turn, capital, listing, made_up_word, phrase, typing_noise, with_article
from adapters.llama_cpp.demo.tables import pairs, words

CAPITALS = (*pairs(knowledge.CAPITALS), ("United States", "Washington, D.C."))
# The countries that newcomers ask for.
WELL_KNOWN = tuple(
    row
    for row in CAPITALS
    if row[0]
    in words("France Germany Italy Spain England Japan China India Canada Egypt Brazil Norway Portugal Greece Poland")
)
LANGUAGES = pairs(knowledge.LANGUAGES)
DEFINITIONS = tuple((head.split(","), answer) for head, answer in (row.split("|") for row in definitions.DEFINITIONS))
SMALL_TALK = tuple((head.split("|"), answer) for head, answer in (row.rsplit("=", 1) for row in definitions.SMALL_TALK))
TRIVIA = tuple(tuple(row.rsplit("|", 2)) for row in knowledge.TRIVIA)
OTHER_PLACES = words(
    """
    Atlantis Mordor Narnia Utopia Mars Wakanda Texas California Bavaria Laos Oman Fiji Mongolia Bolivia Yemen
    Qatar Chad Mali Togo Haiti Panama Georgia Armenia Belarus Moldova Albania Kazakhstan Sudan Uganda Zambia
    Angola Gabon Benin Jamaica
    """
)
LISTS = {kind: items.split(",") for kind, items in (row.split(":") for row in knowledge.LISTS)}


def country_name(rng: Random, country: str) -> str:
    """The country as a user may call it."""
    name = rng.choice([country, country, *knowledge.CAPITAL_ALIASES.get(country, [])])
    return (
        "the " + name
        if name in ("US", "USA", "UK", "United States", "United Kingdom", "Netherlands", "Philippines")
        else name
    )


def capital_turns(rng: Random) -> list[Turn]:
    """The capital of a country, sometimes with `and of Italy?` after it."""
    country, city = rng.choice(WELL_KNOWN if rng.random() < 0.5 else CAPITALS)
    name = country_name(rng, country)
    ask = phrase(
        rng,
        "[[What is|What's|whats|Tell me|Name|Do you know|Can you tell me|Which city is|Could you "
        "tell me|Give me] the capital [city |]of {c}?"
        "|The capital of {c}?|Capital of {c}|capital of {c}?|What is {c}'s capital?|{c} capital|"
        "What city is the capital of {c}?|The capital of {c} is]",
        c=name,
    )
    turns = [
        Turn(typing_noise(rng, ask), f"The capital of {capital_form(country)} is {city.rstrip('.')}.", city.rstrip("."))
    ]
    while rng.random() < 0.3:
        country, city = rng.choice(WELL_KNOWN if rng.random() < 0.5 else CAPITALS)
        ask = phrase(
            rng,
            (
                "[And of {c}?|and {c}?|And {c}?|What about {c}?|And the capital of {c}?|How about {c}?|and "
                "of {c}|and for {c}?]"
            ),
            c=country_name(rng, country),
        )
        turns.append(
            Turn(
                ask if rng.random() < 0.7 else ask.lower(),
                f"The capital of {capital_form(country)} is {city.rstrip('.')}.",
                city.rstrip("."),
            )
        )
    return turns


def capital_form(country: str) -> str:
    """The country as it stands inside a sentence."""
    return "the " + country if country in ("United States", "Netherlands", "Philippines", "Czech Republic") else country


def country_turns(rng: Random) -> list[Turn]:
    """Reverse capitals, continents and languages."""
    kind = rng.randrange(3)
    if kind == 0:
        country, city = rng.choice(CAPITALS)
        ask = phrase(
            rng,
            (
                "[{c} is the capital of [which|what] country?|[Which|What] country has the capital {c}?|In "
                "[which|what] country is {c}?|Where is {c}?|Which country is {c} in?]"
            ),
            c=city,
        )
        return [
            Turn(
                typing_noise(rng, ask),
                f"{city} is in {capital_form(country)}."
                if not city.endswith(".")
                else "Washington is in the United States.",
                country,
            )
        ]
    if kind == 1:
        continent = rng.choice(list(knowledge.CONTINENTS))
        country = rng.choice(knowledge.CONTINENTS[continent].split())
        ask = phrase(
            rng,
            (
                "[On [which|what] continent is {c}?|[Which|What] continent is {c} [in|on]?|Where is {c}?|"
                "In which part of the world is {c}?]"
            ),
            c=country,
        )
        return [Turn(typing_noise(rng, ask), f"{country} is in {continent}.", continent)]
    country, language = rng.choice(LANGUAGES)
    ask = phrase(
        rng,
        (
            "[[What|Which] language [do they|do people] speak in {c}?|What language is spoken in {c}?|"
            "Which language is used in {c}?|What is the language of {c}?]"
        ),
        c=country,
    )
    return [Turn(typing_noise(rng, ask), f"People in {country} speak {language}.", language)]


def definition_turns(rng: Random) -> list[Turn]:
    """`What is a GPU?` and its kin."""
    names, answer = rng.choice(DEFINITIONS[:12] if rng.random() < 0.3 else DEFINITIONS)
    first = rng.choice(names[:2])
    name = rng.choice(names)
    ask = phrase(
        rng,
        "[What is {f}?|What is {n}?|what's {n}?|What are {n}?|Define {n}.|Explain {n}.|Explain "
        "{f}.|Explain {f} in simple words.|What does {n} mean?|Tell me about {n}.|"
        "Can you explain {f}?|What do you know about {n}?|Do you know what {f} is?|Tell me what "
        "{f} is.|Describe {f}.|Give me a definition of {n}.|"
        "What exactly is {f}?|Explain {n} briefly.|Explain what {f} is in one sentence.|{n}?|what "
        "is {n}|What do you mean by {n}?|"
        "In one sentence, what is {f}?|What is the meaning of {n}?|Please define {n}.|Explain {n} to a child.]",
        n=name,
        f=first,
    )
    turns = [Turn(typing_noise(rng, ask), answer)]
    if rng.random() < 0.12:
        names, answer = rng.choice(DEFINITIONS)
        turns.append(
            Turn(
                phrase(rng, "[And {n}?|and what is {n}?|What about {n}?|And what is {n}?|and {n}]", n=names[0]), answer
            )
        )
    return turns


def small_talk_turns(rng: Random) -> list[Turn]:
    """Greetings, thanks, and questions about the model itself."""
    asks, answer = rng.choice(SMALL_TALK)
    return [small_talk_line(rng, rng.choice(asks), answer)]


def greeting_turns(rng: Random) -> list[Turn]:
    """The first lines that newcomers type most."""
    asks, answer = SMALL_TALK[rng.choice([0, 0, 1, 4, 5, 10, 10, 10, 11, 11])]
    return [small_talk_line(rng, asks[0] if rng.random() < 0.3 else rng.choice(asks), answer)]


def small_talk_line(rng: Random, ask: str, answer: str) -> Turn:
    """A small-talk question with its end mark and typing noise."""
    if ask[-1].isalpha() and rng.random() < 0.5:
        word = ask.lower().split()[0]
        questions = "who what how are can do is where why which when should will"
        ask += "?" if word in questions.split() else rng.choice([".", "!", "!"])
    return Turn(typing_noise(rng, ask) if len(ask) > 3 else ask, answer)


def trivia_turns(rng: Random) -> list[Turn]:
    """One row of the trivia table."""
    ask, answer, brief = rng.choice(TRIVIA)
    return [Turn(typing_noise(rng, phrase(rng, ask).strip() + "?"), answer, brief)]


def animal_turns(rng: Random) -> list[Turn]:
    """Sounds, young and legs of animals."""
    kind = rng.randrange(3)
    if kind == 0:
        animal, sound = rng.choice(pairs(knowledge.SOUNDS))
        ask = phrase(
            rng,
            (
                "[What does {a} say?|What sound does {a} make?|Which sound does {a} make?|How does {a} "
                "sound?|What noise does {a} make?]"
            ),
            a=with_article(animal),
        )
        return [Turn(typing_noise(rng, ask), f"{capital(with_article(animal))} says {sound}.", capital(sound))]
    if kind == 1:
        animal, baby = rng.choice(pairs(knowledge.BABIES))
        ask = phrase(
            rng,
            (
                "[What is a baby {n} called?|What do you call a baby {n}?|What is a young {n} called?|What "
                "is the baby of {a}?|Name of a baby {n}?]"
            ),
            n=animal,
            a=with_article(animal),
        )
        return [Turn(typing_noise(rng, ask), f"A young {animal} is called {with_article(baby)}.", capital(baby))]
    animal, legs = rng.choice([row for row in pairs(knowledge.LEGS) if row[1].isdigit()])
    ask = phrase(
        rng,
        "[How many legs does {a} have?|How many legs has {a}?|Number of legs of {a}?|How many legs do {n}s have?]",
        a=with_article(animal),
        n=animal,
    )
    return [Turn(typing_noise(rng, ask), f"{capital(with_article(animal))} has {legs} legs.", legs)]


def opposite_turns(rng: Random) -> list[Turn]:
    """The opposite of a word."""
    pair = rng.choice(pairs(knowledge.OPPOSITES))
    a, b = pair if rng.random() < 0.6 or pair[0] in ("tall", "long", "old", "dark", "black") else pair[::-1]
    ask = phrase(
        rng,
        (
            "[What is the opposite of {a}?|The opposite of {a}?|Opposite of {a}|Give me the opposite "
            "of {a}.|What's the opposite of {q}?|Tell me the opposite of {a}.|What is the antonym of "
            "{a}?]"
        ),
        a=a,
        q=f'"{a}"',
    )
    return [Turn(typing_noise(rng, ask), f"The opposite of {a} is {b}.", capital(b))]


def plural_turns(rng: Random) -> list[Turn]:
    """The plural of a noun, irregular half of the time."""
    one, many = rng.choice(pairs(knowledge.PLURALS))
    if rng.random() < 0.5:
        one = rng.choice(
            words("cat dog book car house tree bird table lamp apple star hat cup door ball friend king river robot")
        )
        many = one + "s"
    ask = phrase(
        rng,
        (
            "[What is the plural of {a}?|The plural of {a}?|Plural of {a}|Give me the plural of {a}.|"
            "What is the plural form of {q}?]"
        ),
        a=one,
        q=f'"{one}"',
    )
    return [Turn(typing_noise(rng, ask), f"The plural of {one} is {many}.", capital(many))]


def color_turns(rng: Random) -> list[Turn]:
    """The colour of a thing."""
    thing, color = rng.choice(pairs(knowledge.COLOR_OF))
    known = "the" if thing in ("sky", "sun", "sea", "ocean", "night") else ""
    form = (
        f"the {thing}"
        if known
        else thing
        if thing in ("grass", "snow", "blood", "coal", "milk", "chocolate", "leaves", "gold", "broccoli")
        else with_article(thing)
    )
    ask = phrase(
        rng,
        (
            "[What color [is|are|has] {f}?|What colour is {f}?|What is the color of {f}?|Which color "
            "is {f}?|The color of {f}?|color of {t}]"
        ),
        f=form,
        t=thing,
    )
    verb = "are" if thing == "leaves" else "is"
    return [Turn(typing_noise(rng, ask), f"{capital(form)} {verb} {color}.", capital(color))]


def translation_turns(rng: Random) -> list[Turn]:
    """A word in French, Spanish, German or Italian."""
    row = rng.choice(pairs(knowledge.TRANSLATIONS))
    at = rng.randrange(4)
    language = ("French", "Spanish", "German", "Italian")[at]
    ask = phrase(
        rng,
        (
            "[How do you say {q} in {l}?|What is {q} in {l}?|Translate {q} to {l}.|Translate {q} into "
            "{l}.|{w} in {l}|What is {w} in {l}?|How do I say {w} in {l}?|What is the {l} word for "
            "{w}?|Translate {w} to {l}]"
        ),
        q=f'"{row[0]}"',
        w=row[0],
        l=language,
    )
    return [Turn(typing_noise(rng, ask), f'"{capital(row[0])}" in {language} is "{row[at + 1]}".', row[at + 1])]


def calendar_turns(rng: Random) -> list[Turn]:
    """Days and months: before, after, how many days."""
    kind = rng.randrange(4)
    names, unit = (knowledge.DAYS, "day") if kind < 2 else (knowledge.MONTHS, "month")
    at = rng.randrange(len(names))
    if kind == 3 and rng.random() < 0.5:
        ask = phrase(rng, "[How many days [does {m} have|are in {m}|has {m}]?|Number of days in {m}?]", m=names[at])
        return [
            Turn(
                typing_noise(rng, ask),
                f"{names[at]} has {knowledge.MONTH_DAYS[at]} days.",
                str(knowledge.MONTH_DAYS[at]),
            )
        ]
    if rng.random() < 0.15:
        ask = phrase(
            rng,
            "[Name|List|Say|Tell me|What are] [all |]the {u}s of the {w}",
            u=unit,
            w="week" if unit == "day" else "year",
        )
        return [Turn(typing_noise(rng, ask), f"The {unit}s are {listing(names)}.")]
    after = rng.random() < 0.6
    other = names[(at + (1 if after else -1)) % len(names)]
    word = "after" if after else "before"
    ask = phrase(rng, "[What|Which] {u} [comes|is] {w} {d}?", u=unit, w=word, d=names[at])
    return [Turn(typing_noise(rng, ask), f"{other} comes {word} {names[at]}.", other)]


def list_turns(rng: Random) -> list[Turn]:
    """`List three fruits`: as many items as asked, in the table's order."""
    kind = rng.choice(list(LISTS))
    items = LISTS[kind]
    count = rng.randint(2, min(len(items), 8)) if rng.random() < 0.85 else 3
    number = knowledge.NUMBER_WORDS[count] if rng.random() < 0.6 else str(count)
    style = rng.random()
    tail = (
        " as a bullet list"
        if style < 0.1
        else " as a numbered list"
        if style < 0.2
        else " as a JSON array"
        if style < 0.3
        else ""
    )
    ask = phrase(
        rng,
        "[List|Name|Give me|Tell me|Write|Can you list|Can you name|Give me a list of|I need|Show me] {n} {k}{t}[.|]",
        n=number,
        k=kind,
        t=tail,
    )
    if rng.random() < 0.15 and not tail:
        count = 3 if len(items) < 5 else 5
        ask = phrase(
            rng,
            "[List some {k}.|Name some {k}.|Give me a list of {k}.|Tell me some {k}.|What {k} do you know?]",
            k=kind,
        )
    picks = items[:count]
    reply = {
        " as a bullet list": "\n".join("- " + item for item in picks),
        " as a numbered list": "\n".join(f"{n}. {item}" for n, item in enumerate(picks, 1)),
        " as a JSON array": "[" + ", ".join(f'"{item}"' for item in picks) + "]",
        "": capital(listing(picks)) + ".",
    }[tail]
    return [Turn(typing_noise(rng, ask) if not tail else ask, reply)]


def no_capital_turns(rng: Random) -> list[Turn]:
    """The capital of a place that is not in the table."""
    place = rng.choice(OTHER_PLACES)
    place = capital(made_up_word(rng, 2, 3)) if rng.random() < 0.4 else place
    ask = phrase(rng, "[What is|What's|Tell me|Name] the capital of {c}?", c=place)
    return [
        Turn(
            typing_noise(rng, ask),
            "I do not know that capital. I am only a tiny demo model. Load a larger GGUF model for a real answer.",
            "Unknown",
        )
    ]
