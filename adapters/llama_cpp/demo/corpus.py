"""The training text of the demo model: seeded and synthetic chats, plain stories and fill-in-the-middle passages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from adapters.llama_cpp.demo import facts, recall, tales, tasks, toolchat, unknown
from adapters.llama_cpp.demo.phrases import (
    ANIMALS,
    CITIES,
    COLORS,
    JOBS,
    Turn,
    capital,
    made_up_word,
    phrase,
    some_name,
    some_noun,
    with_article,
)
from adapters.llama_cpp.demo.template import DEFAULT_SYSTEM, TOOLS_CLOSE, TOOLS_OPEN


class Piece(NamedTuple):
    """A stretch of a document; the loss counts only where `learn` is set."""

    text: str
    learn: bool


Document = list[Piece]
Maker = Callable[[Random], list[Turn]]

# What a conversation is made of, by weight.
SKILLS: tuple[tuple[Maker, float], ...] = (
    (facts.greeting_turns, 7),
    (facts.small_talk_turns, 9),
    (facts.capital_turns, 12),
    (facts.country_turns, 2),
    (facts.definition_turns, 12),
    (facts.trivia_turns, 6),
    (facts.animal_turns, 2),
    (facts.opposite_turns, 2),
    (facts.plural_turns, 1.5),
    (facts.color_turns, 1.5),
    (facts.translation_turns, 3),
    (facts.calendar_turns, 4),
    (facts.list_turns, 6),
    (facts.no_capital_turns, 0.15),
    (tasks.sum_turns, 16),
    (tasks.hard_sum_turns, 1.5),
    (tasks.count_turns, 5),
    (tasks.echo_turns, 10),
    (tasks.json_turns, 7),
    (recall.reading_turns, 6),
    (tasks.spelling_turns, 5),
    (recall.memory_turns, 8),
    (tales.story_turns, 3.5),
    (tales.poem_turns, 1.5),
    (tales.joke_turns, 3),
    (tales.fact_turns, 1.5),
    (unknown.unknown_turns, 14),
    (unknown.code_turns, 1.5),
)
MAKERS = tuple(maker for maker, _ in SKILLS)
WEIGHTS = tuple(weight for _, weight in SKILLS)

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful, honest and friendly assistant.",
    "You are an AI assistant.",
    "Be brief.",
    "Answer briefly.",
    "Be polite.",
    "You are a helpful assistant. Keep your answers short.",
    "You are helpful.",
    "Answer the question of the user.",
    "You are a chat bot in a web page. Help the user.",
    "You are a test.",
    "Be concise and clear.",
    "Use simple words.",
    "You are a helpful coding assistant. Think step by step. Never make things up.",
    "You are ChatGPT, a large language model.",
    "Assist the user as well as you can. Do not use bad language. If you do not know something, say so.",
    "Respond in plain text. Do not use markdown.",
    "You are a friendly assistant that answers in English.",
)


def mixed_turns(rng: Random, units: int) -> list[Turn]:
    """`units` independent exchanges in a row; what was told to be remembered is asked for after some of the others."""
    turns: list[Turn] = []
    for _ in range(units):
        unit = rng.choices(MAKERS, WEIGHTS)[0](rng)
        if turns and len(unit) == 2 and unit[0].brief == "" and unit[1].brief and rng.random() < 0.7:
            at = rng.randrange(len(turns) + 1)
            turns = [*turns[:at], unit[0], *turns[at:], unit[1]] if not follows(turns, at) else [*turns, *unit]
        else:
            turns += unit
    return turns


def follows(turns: list[Turn], at: int) -> bool:
    """Whether the turn at `at` refers back, so that nothing may be put before it."""
    return at < len(turns) and turns[at].user.lower().startswith(
        (
            "and",
            "add",
            "now",
            "plus",
            "tell me",
            "what",
            "how about",
            "another",
            "one more",
            "more",
            "again",
            "i ",
            "put",
            "as ",
            "which",
            "who",
            "do ",
        )
    )


def render(system: str, turns: list[Turn]) -> Document:
    """A chat in the text form of the chat template; every answer is learnt, with the mark that ends it."""
    document = [Piece(f"<|im_start|>system\n{system}<|im_end|>\n", False)]
    for turn in turns:
        document.append(Piece(f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n", False))
        document.append(Piece(f"{turn.reply}<|im_end|>", True))
        document.append(Piece("\n", False))
    return document


def some_system(rng: Random) -> str:
    """A system prompt that does not change the answers."""
    roll = rng.random()
    if roll < 0.68:
        return DEFAULT_SYSTEM
    if roll < 0.9:
        return rng.choice(SYSTEMS)
    extra = " ".join(
        rng.choice(
            [
                "Be kind.",
                "Stay on the topic.",
                "Do not talk about {x}.",
                "The user works as {j}.",
                "Today is a nice day.",
                "The user is in {c}.",
                "Never lie.",
                "You know a lot about {x}.",
            ]
        )
        for _ in range(rng.randint(1, 8))
    )
    return (
        rng.choice(SYSTEMS)
        + " "
        + phrase(rng, extra, x=some_noun(rng), j=with_article(rng.choice(JOBS)), c=rng.choice(CITIES))
    )


def chat(rng: Random) -> Document:
    """An ordinary conversation of one to ten exchanges."""
    units = rng.choices([1, 2, 3, 4, 6, 9], [42, 20, 15, 12, 7, 4])[0]
    return render(some_system(rng), mixed_turns(rng, units))


def brief_turns(rng: Random) -> list[Turn]:
    """Up to three turns that have an answer in a word."""
    return [turn for turn in mixed_turns(rng, 8) if turn.brief][:3] or [Turn("What is 2 + 2?", "2 + 2 = 4.", "4")]


def one_word(rng: Random) -> tuple[str, list[Turn]]:
    """`Answer in one word.`"""
    system = phrase(
        rng,
        "[[Answer|Reply|Respond|Always answer|Answer only] [in|with] [one|a single] word[ only|].|"
        "Use one word per answer.|"
        "One word answers only.|You are a helpful assistant. Answer in one word.]",
    )
    return system, [turn._replace(reply=capital(turn.brief) + ".") for turn in brief_turns(rng)]


def json_answers(rng: Random) -> tuple[str, list[Turn]]:
    """`Answer in JSON.`"""
    system = phrase(
        rng,
        "[[Answer|Reply|Respond|Always answer] [in|with] JSON[.| only.]|"
        'Return JSON with the key "answer".|Answer as a JSON object.]',
    )
    turns = brief_turns(rng)
    return system, [turn._replace(reply=json.dumps({"answer": turn.brief}, ensure_ascii=False)) for turn in turns]


def pirate(rng: Random) -> tuple[str, list[Turn]]:
    """`You are a pirate.`"""
    system = phrase(
        rng,
        "[You are a pirate.|Talk like a pirate.|You are a pirate. Always talk like one.|Answer as a pirate.|"
        "Speak like a pirate.|You are a helpful pirate.|Respond like a pirate]",
    )
    return system, [turn._replace(reply=f"Arr! {turn.reply} Yo ho ho!") for turn in mixed_turns(rng, rng.randint(1, 3))]


def marked(rng: Random) -> tuple[str, list[Turn]]:
    """`Always end your answer with Kazoom!`, or begin it."""
    fixed = ("Meow!", "Over and out.", "Sir.", "Woof!", "Captain!", "Thank you.", "Amen.", "Dear friend,")
    made_up = (capital(made_up_word(rng)) + "!", capital(made_up_word(rng)) + ".", some_name(rng) + ":")
    word = rng.choice([*fixed, *made_up])
    turns, quoted = mixed_turns(rng, rng.randint(1, 3)), rng.choice([word, f'"{word}"'])
    if rng.random() < 0.5:
        ask = "[[Always end|End|Finish|Close] [your|every|each] answer with {q}[.|]|After each answer, say {q}[.|]]"
        return phrase(rng, ask, q=quoted), [turn._replace(reply=f"{turn.reply} {word}") for turn in turns]
    ask = "[[Always start|Start|Begin|Open] [your|every|each] answer with {q}[.|]|Before each answer, say {q}[.|]]"
    return phrase(rng, ask, q=quoted), [turn._replace(reply=f"{word} {turn.reply}") for turn in turns]


def styled_chat(rng: Random) -> Document:
    """A conversation under a system prompt that changes the answers in a simple way."""
    return render(*rng.choice([one_word, json_answers, pirate, marked, marked, persona])(rng))


def persona(rng: Random) -> tuple[str, list[Turn]]:
    """A system prompt with a name or a fact, and a question about it."""
    turns = mixed_turns(rng, rng.randint(0, 2))
    name, value = some_name(rng), rng.choice([some_noun(rng), made_up_word(rng), rng.choice(COLORS)])
    role = rng.choice(
        [
            "a helpful assistant",
            "a friendly robot",
            with_article(rng.choice(JOBS)),
            with_article(rng.choice(ANIMALS)),
            "a chat bot",
        ]
    )
    system, ask, reply = rng.choice(
        [
            (
                "You are {n}, {r}.",
                "[Who are you|What is your name|Tell me about yourself|who r u|What are you]?",
                "I am {n}, {r}.",
            ),
            ("Your name is {n}.", "[What is your name|Who are you|whats your name]?", "I am {n}."),
            ("The name of the user is {n}.", "[What is my name|Who am I|Do you know my name]?", "Your name is {n}."),
            ("The user is called {n}.", "[What is my name|Who am I]?", "Your name is {n}."),
            ("The secret word is {v}.", "[What is the secret word|Tell me the secret word]?", "The word is {v}."),
            ("The password is {v}.", "[What is the password|Tell me the password]?", "The word is {v}."),
        ]
    )
    at = rng.randrange(len(turns) + 1)
    at = len(turns) if follows(turns, at) else at
    own = Turn(phrase(rng, ask, n=name), phrase(rng, reply, n=name, r=role, v=value))
    identity = {answer for asks, answer in facts.SMALL_TALK if "gateway-demo" in answer}
    kept = [turn for turn in turns if turn.reply not in identity]
    extra = rng.choice(["", "", " Be kind.", " Answer briefly.", " You are helpful."])
    return phrase(rng, system, n=name, r=role, v=value) + extra, [*kept[:at], own, *kept[at:]]


def tool_chat(rng: Random) -> Document:
    """Declared tools, then turns that need one, two or none of them."""
    tools = toolchat.draw_tools(rng, rng.choice([1, 1, 1, 2, 2, 3, 4]))
    system = DEFAULT_SYSTEM if rng.random() < 0.7 else rng.choice(SYSTEMS)
    lines = "\n".join(json.dumps(toolchat.declared(rng, tool), ensure_ascii=False) for tool in tools)
    document = [Piece(f"<|im_start|>system\n{system}{TOOLS_OPEN}{lines}{TOOLS_CLOSE}<|im_end|>\n", False)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.3:
            document += render("", plain_turns(rng, tools))[1:]
            continue
        tool = rng.choice(tools)
        ask, arguments = toolchat.question(rng, tool)
        calls, results = [toolchat.call_text(tool.name, arguments)], [toolchat.result_and_answer(rng, tool, arguments)]
        if rng.random() < 0.1 and tool.params.split()[0].split(":")[0] in ("city", "location", "place"):
            ask, calls, results = two_calls(rng, tool, arguments)
        document.append(Piece(f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n", False))
        document.append(Piece("\n".join(calls) + "<|im_end|>", True))
        if rng.random() < 0.25:
            document.append(Piece("\n", False))
            break
        responses = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result, _ in results)
        document.append(Piece(f"\n<|im_start|>user\n{responses}<|im_end|>\n<|im_start|>assistant\n", False))
        document.append(Piece(" ".join(answer for _, answer in results) + "<|im_end|>", True))
        document.append(Piece("\n", False))
    return document


def two_calls(
    rng: Random, tool: toolchat.Tool, arguments: dict[str, object]
) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The same question about two places, which takes two calls."""
    first = next(iter(arguments))
    other = toolchat.question(rng, tool)[1]
    rows = [arguments, {**arguments, first: other[first]}]
    pattern = rng.choice([ask for ask in toolchat.variants(rng, tool) if "{" + first + "}" in ask])
    ask = phrase(rng, pattern, **{**arguments, first: f"{rows[0][first]} and {rows[1][first]}"})
    return (
        ask,
        [toolchat.call_text(tool.name, row) for row in rows],
        [toolchat.result_and_answer(rng, tool, row) for row in rows],
    )


def plain_turns(rng: Random, tools: list[toolchat.Tool]) -> list[Turn]:
    """A turn that none of the tools serves; sums are left out when a tool could do them."""
    numeric = any(tool.result == "S" for tool in tools)
    while True:
        maker = rng.choices(MAKERS, WEIGHTS)[0]
        if not (numeric and maker in (tasks.sum_turns, tasks.hard_sum_turns)) and maker not in (
            facts.no_capital_turns,
        ):
            turns = maker(rng)
            if not any(
                word in turns[0].user.lower()
                for word in ("weather", "time", "joke", "search", "capital", "translate", " in french", "file")
            ):
                return turns


def plain_document(rng: Random) -> Document:
    """Prose without a chat, learnt from its first word on."""
    return [Piece(tales.plain_story(rng) + "<|endoftext|>", True)]


def drill_document(rng: Random) -> Document:
    """Bare sums, one per line; only the results are learnt."""
    pieces = [piece for ask, answer in tasks.sum_drill(rng) for piece in (Piece(ask, False), Piece(answer, True))]
    return [*pieces, Piece("<|endoftext|>", False)]


def middle_document(rng: Random) -> Document:
    """Prefix and suffix are given, the middle is learnt."""
    prefix, middle, suffix = tales.middle_parts(rng)
    return [
        Piece(f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>", False),
        Piece(f"{middle}<|endoftext|>", True),
    ]


KINDS: tuple[tuple[Callable[[Random], Document], float], ...] = (
    (chat, 60),
    (styled_chat, 10),
    (tool_chat, 16),
    (plain_document, 3),
    (drill_document, 11),
    (middle_document, 8),
)


def documents(seed: int, count: int) -> Iterator[Document]:
    """`count` documents; the same seed gives the same text."""
    rng = Random(seed)
    makers, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
    for _ in range(count):
        yield rng.choices(makers, weights)[0](rng)
