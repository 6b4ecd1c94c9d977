from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from adapters.errors import EngineFailed, InvalidRequest, ModelUnavailable, Overloaded
from adapters.scripted import Script, Scripted, ScriptError, read_script
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    Generation,
    Message,
    RerankRequest,
    Started,
    Usage,
)

CALLER = Caller("r", "t")


def scripted(text: str) -> Scripted:
    return Scripted("s", msgspec.yaml.decode(text, type=Script))


def chat(model: Scripted, said: str = "hi", **generation: object) -> list[Event]:
    request = ChatRequest("s", (Message("user", said),), generation=Generation(**generation))  # type: ignore[arg-type]

    async def play() -> list[Event]:
        return [event async for event in model.chat(request, CALLER)]

    return asyncio.run(play())


def texts(events: list[Event]) -> str:
    return "".join(getattr(event, "text", "") for event in events)


def test_an_answer_word_by_word_with_what_it_used() -> None:
    events = chat(scripted("answers: [{text: Hello little world}]"))
    prompt = len("<user>hi\n")
    assert events[0] == Started(prompt)
    assert [getattr(event, "text", None) for event in events[1:4]] == ["Hello", " little", " world"]
    assert events[4:] == [ChoiceFinished(0, "stop"), Finished(Usage(prompt, 3))]


def test_answers_take_turns_and_match() -> None:
    model = scripted("answers: [{text: one}, {text: two}, {match: weather, text: rain}]")
    assert [texts(chat(model, said)) for said in ("hi", "the weather?", "hi", "hi")] == ["one", "rain", "two", "one"]


def test_without_an_answer_that_matches_there_is_none() -> None:
    with pytest.raises(ModelUnavailable):
        chat(scripted("answers: [{match: weather, text: rain}]"))


def test_limits_cut_and_ignoring_the_end_goes_on_to_them() -> None:
    model = scripted("answers: [{chunks: [a, b]}]")
    cut, long = chat(model, max_tokens=1), chat(model, max_tokens=5, ignore_eos=True)
    assert (texts(cut), texts(long)) == ("a", "ababa")
    assert cut[-2] == long[-2] == ChoiceFinished(0, "length")


def test_choices_reasoning_and_calls() -> None:
    model = scripted("answers: [{reasoning: so so, tool_calls: [{name: f, arguments: '{}'}]}]")
    events = chat(model, n=2)
    assert events[-1] == Finished(Usage(len("<user>hi\n"), 6, 0, 4))
    assert events[-3:-1] == [ChoiceFinished(0, "tool_calls"), ChoiceFinished(1, "tool_calls")]


def test_reported_usage_is_what_the_script_says() -> None:
    model = scripted("answers: [{text: a, usage: {prompt_tokens: -5, completion_tokens: 1000000}}]")
    assert chat(model)[-1] == Finished(Usage(-5, 1_000_000))


@pytest.mark.parametrize(
    ("after", "shown"), [(0, None), (1, "a"), (2, "ab"), (9, "abc")], ids=["before", "first", "second", "end"]
)
def test_errors_come_where_the_script_has_them(after: int, shown: str | None) -> None:
    model = scripted(f"answers: [{{chunks: [a, b, c], error: {{code: engine_failed, after_chunks: {after}}}}}]")
    seen: list[Event] = []

    async def play() -> None:
        events = model.chat(ChatRequest("s", (Message("user", "hi"),)), CALLER)
        while True:
            seen.append(await anext(events))

    with pytest.raises(EngineFailed):
        asyncio.run(play())
    assert (texts(seen) if seen else None) == shown


def test_an_error_says_when_to_come_back() -> None:
    with pytest.raises(Overloaded) as raised:
        chat(scripted("answers: [{error: {code: overloaded, retry_after_s: 7}}]"))
    assert raised.value.retry_after_s == 7


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat(scripted("{context_tokens: 9, answers: [{text: a}]}"))
    assert raised.value.code == "context_length_exceeded"


def test_several_prompts_are_several_choices() -> None:
    request = CompletionRequest("s", ("one", (1, 2, 3)), generation=Generation(n=2))

    async def play() -> list[Event]:
        return [event async for event in scripted("answers: [{text: a}]").complete(request, CALLER)]

    assert asyncio.run(play())[-1] == Finished(Usage(6, 4))


def test_embeddings_and_scores() -> None:
    model = scripted("{kinds: [embedding, rerank], answers: [{}]}")
    one = asyncio.run(model.embed(EmbeddingRequest("s", ("a", "b", "a"), 4), CALLER))
    assert one.vectors[0] == one.vectors[2] != one.vectors[1]
    assert (len(one.vectors[0]), one.prompt_tokens) == (16, 3)
    with pytest.raises(InvalidRequest):
        asyncio.run(model.embed(EmbeddingRequest("s", ("a",), 9), CALLER))
    ranking = asyncio.run(model.rerank(RerankRequest("s", "red car", ("a red car", "the car", "sky")), CALLER))
    assert ranking.scores == (1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    "text", ["", "answers: []", "answers: [{said: a}]", "answers: [{error: {code: nonsense}}]", "a: {", "\xff\0"]
)
def test_what_is_no_script_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ScriptError, match=r"script\.yaml"):
        read_script(path)
    with pytest.raises(ScriptError, match="cannot be read"):
        read_script(tmp_path / "missing.yaml")
