"""Small skills: sums, counting, echo, JSON and spelling, with made-up values so that copying is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from adapters.llama_cpp.demo.knowledge import NUMBER_WORDS
from adapters.llama_cpp.demo.phrases import (
    ADJECTIVES,
    ANIMALS,
    COLORS,
    FOODS,
    JOBS,
    PLACES,
    THINGS,
    Turn,
    capital,
    code_word,
    made_up_word,
    phrase,
    some_city,
    some_name,
    some_noun,
    some_sentence,
    some_words,
    typing_noise,
    with_article,
)
from adapters.llama_cpp.demo.tables import words

TOO_HARD = "That is too hard for a tiny demo model. Load a larger GGUF model for a real answer."


def operands(rng: Random) -> tuple[int, str, int, int]:
    """`(a, sign, b, result)` of a sum the model should master."""
    roll = rng.random()
    if roll < 0.25:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        return a, "+", b, a + b
    if roll < 0.55:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        return a, "+", b, a + b
    if roll < 0.65:
        b, c = rng.randint(0, 12), rng.randint(0, 12)
        return b + c, "-", b, c
    if roll < 0.84:
        a, b = sorted((rng.randint(0, 99), rng.randint(0, 99)), reverse=rng.random() < 0.85)
        return a, "-", b, a - b
    if roll < 0.96:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        return a, "*", b, a * b
    b, c = rng.randint(1, 10), rng.randint(1, 10)
    return b * c, "/", b, c


def spoken(rng: Random, number: int) -> str:
    """Digits, or now and then the word for a small number."""
    return NUMBER_WORDS[number] if number <= 20 and rng.random() < 0.2 else str(number)


def sum_turns(rng: Random) -> list[Turn]:
    """One sum; sometimes a second one, or one that goes on from the result."""
    a, sign, b, result = operands(rng)
    signs = {"+": ["plus"], "-": ["minus"], "*": ["times", "multiplied by"], "/": ["divided by"]}[sign]
    space = rng.choice(["", " ", " "])
    mark = rng.choice(["*", "x", "*", "\u00d7"]) if sign == "*" else sign
    if rng.random() < 0.35:
        body = f"{spoken(rng, a)} {rng.choice(signs)} {spoken(rng, b)}"
    else:
        body = f"{a}{space}{mark}{space}{b}"
    ask = phrase(
        rng,
        (
            "[What is {e}?|What's {e}?|{e}|{e}?|{e} =|{e}=|{e}=?|How much is {e}?|Calculate {e}.|Compute "
            "{e}.|Solve {e}|What does {e} equal?|Can you calculate {e}?|Tell me what {e} is.|what is {e}|"
            "whats {e}]"
        ),
        e=body,
    )
    roll = rng.random()
    if sign == "+" and roll < 0.1:
        ask = phrase(
            rng,
            (
                "[Add {a} and {b}.|What is the sum of {a} and {b}?|Sum of {a} and {b}|If I have {a} {n}s and get "
                "{b} more, how many do I have?]"
            ),
            a=a,
            b=b,
            n=rng.choice(THINGS),
        )
    if sign == "-" and roll < 0.08 and a >= b:
        ask = phrase(
            rng,
            "[Subtract {b} from {a}.|Take {b} from {a}.|If I have {a} {n}s and give away {b}, how many are left?]",
            a=a,
            b=b,
            n=rng.choice(THINGS),
        )
    turns = [Turn(typing_noise(rng, ask) if rng.random() < 0.5 else ask, f"{a} {sign} {b} = {result}.", str(result))]
    if rng.random() < 0.12:
        a, sign, b, follow = operands(rng)
        turns.append(
            Turn(
                phrase(rng, "[And {e}?|and {e}|What about {e}?]", e=f"{a} {sign} {b}"),
                f"{a} {sign} {b} = {follow}.",
                str(follow),
            )
        )
    elif rng.random() < 0.12 and 0 <= result <= 99:
        more = rng.randint(1, 20)
        turns.append(
            Turn(
                phrase(rng, "[Add {m} to that.|Now add {m}.|Plus {m}?|and plus {m}?|Now plus {m}]", m=more),
                f"{result} + {more} = {result + more}.",
                str(result + more),
            )
        )
    return turns


def sum_drill(rng: Random) -> list[tuple[str, str]]:
    """A dozen or two bare sums as `(question, answer)` text: much practice in few tokens."""
    drill = []
    for _ in range(rng.randint(8, 24)):
        a, sign, b, result = operands(rng)
        drill.append((f"{a} {sign} {b}", f" = {result}.\n"))
    return drill


def hard_sum_turns(rng: Random) -> list[Turn]:
    """Calculations beyond the model's means get an honest refusal."""
    a, b = rng.randint(13, 99999), rng.randint(130, 99999)
    body = phrase(
        rng, "[{a} * {b}|{a}*{b}|{a} times {b}|{a} + {b}|{a} - {b}|{a} / {b}|{a} x {b}|{b} divided by {a}]", a=a, b=b
    )
    ask = phrase(rng, "[What is {e}?|{e}|{e}=|Calculate {e}.|How much is {e}?]", e=body)
    if rng.random() < 0.3:
        ask = phrase(
            rng,
            (
                "[What is the square root of {b}?|What is {k}% of {b}?|What is the derivative of x^{k}?|Solve "
                "{k}x + {a} = {b}.|What is {a} to the power of {k}?|Integrate x^{k}.|Is {b} a prime number?|"
                "Factor {b}.|log of {b}]"
            ),
            a=a,
            b=b,
            k=rng.randint(2, 30),
        )
    return [Turn(ask, TOO_HARD, "Unknown")]


def count_turns(rng: Random) -> list[Turn]:
    """Counting up, down and in steps: long answers with one right continuation."""
    roll = rng.random()
    top = (
        rng.choice([3, 5, 10, 10, 15, 20, 20, 30, 50, 100])
        if rng.random() < 0.35
        else rng.randint(2, rng.choice([8, 12, 12, 20, 60]))
    )
    if roll < 0.75:
        start = 1 if rng.random() < 0.8 else rng.randint(0, 40)
        top = max(top, start + 2)
        ask = f"[Count|Please count|Can you count|Count for me|Count up|Count slowly] from {start} to {top}[.|]"
        if start == 1:
            ask = (
                f"[{ask}|{ask}|Count to {top}[.|]|Write the numbers from 1 to {top}[.|]|List the numbers from 1 "
                f"to {top}|Can you count to {top}?|Say the numbers from 1 to {top}]"
            )
        numbers = range(start, top + 1)
    elif roll < 0.88:
        top = min(top, 40)
        ask, numbers = (
            f"[Count [down|backwards|back] from {top} to 1[.|]|Countdown from {top}[.|]|Count down from {top}.]",
            range(top, 0, -1),
        )
    else:
        step = rng.choice([2, 5, 10])
        top = step * rng.randint(3, 10)
        ask, numbers = (
            f"[Count to {top} by {step}s|Count by {step}s to {top}|Count in steps of {step} to {top}].",
            range(step, top + 1, step),
        )
    return [Turn(typing_noise(rng, phrase(rng, ask)), ", ".join(map(str, numbers)) + ".")]


def echo_turns(rng: Random) -> list[Turn]:
    """Repeat a text exactly."""
    roll = rng.random()
    if roll < 0.3:
        text = some_sentence(rng)
    elif roll < 0.75:
        text = some_words(rng, 1, rng.choice([1, 2, 3, 5, 10]))
    elif roll < 0.9:
        text = made_up_word(rng, 1, 4)
    else:
        text = rng.choice(
            [
                code_word(rng),
                "hello world",
                "Hello, world!",
                "hello",
                "yes",
                "I am a tiny model.",
                "banana",
                "ok",
                "OK",
                "test",
                "pong",
            ]
        )
    if rng.random() < 0.12:
        times = rng.randint(2, 4)
        ask = phrase(
            rng,
            "[Say|Repeat|Write] {q} {n} times[.|]",
            q=f'"{text}"' if rng.random() < 0.6 else text,
            n=rng.choice([times, NUMBER_WORDS[times]]),
        )
        return [Turn(ask, " ".join([text] * times))]
    ask = phrase(
        rng,
        "[Say {t}|Say: {t}|Say {q}|Say {q}.|Repeat after me: {t}|Repeat: {t}|Repeat this: {t}|Please say "
        "{q}.|Echo {t}|echo {t}|Echo: {t}|Can you say {q}?|Write {q}.|say {t}|"
        "Repeat {q}|Just say {t}|Reply with {q}.|Reply with: {t}|Reply with the word {t}|Answer with {q}|"
        "Say exactly: {t}|Say exactly {q}|Repeat the following: {t}|Print {q}|Type {t}|"
        "Copy this text: {t}|Respond with {q} only.|Reply with exactly {q}|Reply with exactly: {t}|Say "
        "only {q}|Repeat after me {q}]",
        t=text,
        q=rng.choice([f'"{text}"', f"'{text}'", f'"{text}"']),
    )
    return [Turn(ask, text)]


def json_fields(rng: Random) -> dict[str, object]:
    """A small record with copyable values."""
    makers: dict[str, Callable[[], object]] = {
        "name": lambda: some_name(rng),
        "age": lambda: rng.randint(1, 99),
        "city": lambda: some_city(rng),
        "color": lambda: rng.choice(COLORS),
        "animal": lambda: rng.choice(ANIMALS),
        "price": lambda: rng.randint(1, 999),
        "count": lambda: rng.randint(1, 99),
        "id": lambda: code_word(rng),
        "job": lambda: rng.choice(JOBS),
        "title": lambda: capital(rng.choice(ADJECTIVES)) + " " + capital(some_noun(rng)),
        "food": lambda: rng.choice(FOODS),
        "active": lambda: rng.random() < 0.5,
        "size": lambda: rng.choice(["small", "medium", "large"]),
        "country": lambda: rng.choice(["France", "Japan", "Peru", "Kenya", "Italy"]),
        "year": lambda: rng.randint(1900, 2030),
        "status": lambda: rng.choice(["open", "closed", "new", "done"]),
        "email": lambda: some_name(rng).lower() + "@example.com",
        made_up_word(rng, 1, 2): lambda: made_up_word(rng),
        made_up_word(rng, 1, 2): lambda: rng.randint(0, 9999),
    }
    keys = rng.sample(list(makers), rng.randint(1, 4))
    if rng.random() < 0.5:
        keys = ["name", *[key for key in keys if key != "name"]][:4]
    return {key: makers[key]() for key in keys}


def plain(value: object) -> str:
    """A JSON value as people type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def json_turns(rng: Random) -> list[Turn]:
    """A JSON object from given values, in several wordings, now and then nested or as an array."""
    fields = json_fields(rng)
    if rng.random() < 0.2:
        return [extraction(rng)]
    link = rng.choice([" ", " ", "=", ": ", " = ", " is "])
    parts = [f"{key}{link}{plain(value)}" for key, value in fields.items()]
    body = (
        ", ".join(parts)
        if link != " " or rng.random() < 0.3
        else parts[0]
        if len(parts) == 1
        else ", ".join(parts[:-1]) + " and " + parts[-1]
    )
    ask = phrase(
        rng,
        (
            "[Give me|Write|Return|Make|Create|Output|Produce|I need|Can you write|Reply with] [a JSON "
            "object|JSON|a JSON|json|an object in JSON|some JSON|valid JSON] [with|for|containing|with the "
            "fields] {b}[.|]"
        ),
        b=body,
    )
    if rng.random() < 0.2:
        ask = phrase(
            rng,
            "[{b} as JSON|{b} in JSON|Turn this into JSON: {b}|Convert to JSON: {b}|JSON: {b}|To JSON: {b}]",
            b=body,
        )
    reply = json.dumps(fields, ensure_ascii=False)
    if rng.random() < 0.1:
        return [
            Turn(ask, reply),
            Turn(phrase(rng, "[Now as a list.|As an array please.|Put it in an array.]"), f"[{reply}]"),
        ]
    return [Turn(ask, reply)]


def extraction(rng: Random) -> Turn:
    """Pull name, age, city or job out of a sentence."""
    name, age, city, job = some_name(rng), rng.randint(2, 99), some_city(rng), rng.choice(JOBS)
    rows: list[tuple[dict[str, object], str]] = [
        ({"name": name, "age": age}, f"{name} is {age} years old."),
        ({"name": name, "city": city}, f"{name} lives in {city}."),
        ({"name": name, "age": age, "city": city}, f"{name} is {age} years old and lives in {city}."),
        ({"name": name, "job": job, "city": city}, f"{name} works as {with_article(job)} in {city}."),
        ({"name": name, "age": age, "job": job}, f"{name}, {age}, is {with_article(job)}."),
    ]
    fields, text = rng.choice(rows)
    keys = list(fields)
    listed = ", ".join(keys[:-1]) + " and " + keys[-1]
    ask = phrase(
        rng,
        (
            "[Extract the {k} as JSON: {t}|Extract {k} as JSON from this text: {t}|{t} Give me the {k} as "
            "JSON.|Return the {k} as JSON. {t}|Text: {t} Return a JSON object with the fields {k}.]"
        ),
        k=listed,
        t=text,
    )
    return Turn(ask, json.dumps(fields))


WORDS = (*ANIMALS, *THINGS, *COLORS, *FOODS, *PLACES, "hello", "world", "python", "gateway", "model")


# Few words, seen often: the tokens of a word do not show its letters, so each spelling is learnt by heart.
SPELLED = words(
    "cat dog fox hat sun moon star book tree house apple banana hello world python model bird fish cheese pizza"
)


def spelling_turns(rng: Random) -> list[Turn]:
    """Spell a known word, count its letters, or use a word in a sentence."""
    word = rng.choice(SPELLED if rng.random() < 0.8 else WORDS)
    kind = rng.random()
    if kind < 0.45:
        ask = phrase(
            rng,
            "[Spell {w}.|Spell the word {w}.|How do you spell {w}?|Can you spell {w}?|How is {w} spelled?|spell {q}]",
            w=word,
            q=f'"{word}"',
        )
        return [Turn(typing_noise(rng, ask), "-".join(word))]
    if kind < 0.6:
        ask = phrase(
            rng,
            (
                "[How many letters are in {w}?|How many letters has {w}?|How many letters does the word {w} "
                "have?|Number of letters in {q}?]"
            ),
            w=word,
            q=f'"{word}"',
        )
        return [Turn(typing_noise(rng, ask), f"The word {word} has {len(word)} letters.", str(len(word)))]
    noun, adjective, place = some_noun(rng), rng.choice(ADJECTIVES), rng.choice(PLACES)
    ask = phrase(
        rng,
        (
            "[Write a sentence about {a}.|Write one sentence about {a}.|Use the word {n} in a sentence.|Make "
            "a sentence with the word {n}.|Give me a sentence with {n}.|Write a sentence with {n}.]"
        ),
        n=noun,
        a=with_article(noun),
    )
    return [
        Turn(
            typing_noise(rng, ask) if noun in WORDS else ask,
            f"The {noun} is in the {place} and looks very {adjective}.",
        )
    ]
