"""Reading and remembering: facts in the question or in an earlier turn, and questions about them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from adapters.llama_cpp.demo.phrases import (
    ADJECTIVES,
    ANIMALS,
    COLORS,
    FOODS,
    JOBS,
    PLACES,
    Turn,
    capital,
    code_word,
    made_up_word,
    phrase,
    some_city,
    some_name,
    some_noun,
    with_article,
)
from adapters.llama_cpp.demo.tables import rows, words

# statement # question # full answer # short answer, about {who} and the values of `person`
FACTS = rows(
    """
{who} lives in {city}.#Where does {who} live?#{who} lives in {city}.#{city}
{who} likes {food}.#What does {who} like?#{who} likes {food}.#{food}
{who} is {job}.#What is the job of {who}?#{who} is {job}.#{trade}
{who} has a {color} {thing}.#What does {who} have?#{who} has a {color} {thing}.#{thing}
The {thing} of {who} is {color}.#What color is the {thing} of {who}?#The {thing} of {who} is {color}.#{color}
{who} is {number} years old.#How old is {who}?#{who} is {number} years old.#{number}
{who} has {number} {thing}s.#How many {thing}s does {who} have?#{who} has {number} {thing}s.#{number}
{who} lost the {thing} in {city}.#Where did {who} lose the {thing}?#{who} lost the {thing} in {city}.#{city}
"""
)
QUESTION = (
    "[{t} {q}|Read this: {t} {q}|Text: {t}\nQuestion: {q}|Context: {t}\n\nQuestion: {q}|{t}\n{q}|"
    "Use this text to answer. {t} {q}]"
)

# kind of value # what the user tells # what the user asks later # answer # first reply
MEMORIES = rows(
    """
name#[My name is {v}|I am {v}|I'm {v}|Hi, I am {v}|Hello, my name is {v}|my name is {v}|Call me {v}|Hi! I'm {v}|
    Hello, I am {v}|The name is {v}]#[What is my name|Who am I|Do you know my name|Do you remember my name|
    What was my name|whats my name|Tell me my name|What's my name|Say my name|Can you tell me my name]#
    Your name is {v}.#Nice to meet you, {v}!
name#[My name is {v}|I am {v}|I'm {v}|my name is {v}]#[What is my name|Do you remember my name|whats my name]#
    Your name is {v}.#Nice to meet you, {v}!
city#[I live in {v}|I am from {v}|My city is {v}|My home is {v}]#[Where do I live|Which city do I live in|
    What is my city|Where am I from]#You live in {v}.#I have heard that {v} is a nice place.
color#[My favorite color is {v}|I like the color {v}|My favourite colour is {v}|My favorite colour is {v}]#
    [What is my favorite color|Which color do I like|What is my favourite colour]#Your favorite color is {v}.#
    {v} is a nice color.
food#[I like {v}|My favorite food is {v}|I love {v}]#[What do I like|What is my favorite food|What do I like to eat]#
    You like {v}.#Good to know that you like {v}.
job#[I work as a {v}|My job is {v}|I am a {v} by job]#[What is my job|What do I do for work|What do I work as]#
    Your job is {v}.#That is a useful job.
number#[I am {v} years old|My age is {v}|I'm {v} years old]#[How old am I|What is my age]#You are {v} years old.#
    {v} is a good age.
animal#[I have a {v}|My pet is a {v}]#[What pet do I have|Which animal do I have|What is my pet]#You have a {v}.#
    I hope your {v} is well.
word#[The secret word is {v}|Remember the word {v}|Remember this word: {v}|The password is {v}|The code is {v}|
    Please remember {v}]#[What is the secret word|Which word did I tell you|What was the word|What is the password|
    What is the code|What did I ask you to remember]#The word is {v}.#I will remember {v}.
number#[My lucky number is {v}|Remember the number {v}|I am thinking of the number {v}]#[What is my lucky number|
    Which number did I tell you|What was the number|What is the number]#The number is {v}.#I will remember {v}.
"""
)


def person(rng: Random, who: str) -> dict[str, str]:
    """The values that the facts about one person draw from."""
    job = rng.choice(JOBS)
    return {
        "who": who,
        "city": some_city(rng),
        "food": rng.choice(FOODS),
        "job": with_article(job),
        "trade": job,
        "thing": some_noun(rng),
        "color": rng.choice(COLORS),
        "number": str(rng.randint(2, 99)),
    }


def reading_turns(rng: Random) -> list[Turn]:
    """Facts about one to three people in the question, then one to three questions about them."""
    facts: list[list[str]] = []
    for who in dict.fromkeys(some_name(rng) for _ in range(rng.randint(1, 3))):
        values = person(rng, who)
        facts += [phrase(rng, row, **values).split("#") for row in rng.sample(FACTS, rng.randint(1, 3))]
    rng.shuffle(facts)
    stated = [fact[0] for fact in facts]
    for _ in range(rng.randint(8, 30) if rng.random() < 0.06 else 0):
        filler = f"The weather is {rng.choice(ADJECTIVES)} near the {rng.choice(PLACES)}."
        stated.insert(rng.randint(0, len(stated)), filler)
    wanted = rng.sample(facts, rng.randint(1, min(3, len(facts))))
    first = phrase(rng, QUESTION, t=" ".join(stated), q=wanted[0][1])
    return [
        Turn(question if at else first, answer, capital(brief))
        for at, (_, question, answer, brief) in enumerate(wanted)
    ]


def memory_turns(rng: Random) -> list[Turn]:
    """The user tells something and asks for it later; other turns may be put between."""
    kind, tell, ask, reply, hello = rng.choice(MEMORIES).replace("# ", "#").split("#")
    makers: dict[str, Callable[[], str]] = {
        "name": lambda: some_name(rng) if rng.random() < 0.75 else some_name(rng).lower(),
        "city": lambda: some_city(rng),
        "color": lambda: rng.choice([*COLORS, *words("teal cyan beige magenta lime navy"), made_up_word(rng, 1, 2)]),
        "food": lambda: rng.choice(FOODS),
        "job": lambda: rng.choice(JOBS),
        "number": lambda: str(rng.randint(2, 99)),
        "animal": lambda: rng.choice(ANIMALS),
        "word": lambda: rng.choice([made_up_word(rng), some_noun(rng), code_word(rng)]),
    }
    value = makers[kind]()
    question = phrase(rng, ask)
    question = question + "?" if rng.random() < 0.7 else question.lower()
    told, reply = phrase(rng, tell, v=value) + rng.choice([".", ".", "", "!"]), phrase(rng, reply, v=value)
    if rng.random() < 0.15:
        return [Turn(f"{told} {capital(question)}", reply, value)]
    turns = [Turn(told, capital(phrase(rng, hello, v=value))), Turn(question, reply, value)]
    if rng.random() < 0.1:
        turns.append(Turn(phrase(rng, "[Are you sure?|Really?]"), reply))
    return turns
