"""Images through the official SDK, a real gateway and a real vision model."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.models.random_vision import png, png_of

IMAGE_TOKENS = 64


@pytest.fixture(scope="module")
def server(tiny_model: Path, projector: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = f"""
models:
  - name: eyes
    path: {tiny_model}
    engine: {{threads: 1, context_tokens: 1024, cache_tokens: 4096, mmproj: {projector}}}
  - name: blind
    path: {tiny_model}
    engine: {{threads: 1, context_tokens: 1024}}
"""
    with Server(tmp_path_factory.mktemp("images"), config=config) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


def image(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def user(*parts: str | dict[str, Any]) -> Any:
    return {
        "role": "user",
        "content": [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts],
    }


def ask(client: openai.OpenAI, *messages: Any, model: str = "eyes", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=list(messages), temperature=0, max_tokens=10, **more)


def test_images_change_answers_and_the_next_turn_keeps_them(client: openai.OpenAI, server: Server) -> None:
    question = user("look: ", image(png(90, 60, seed=1)), "what is it?")
    first = ask(client, question)
    other = ask(client, user("look: ", image(png(90, 60, seed=2)), "what is it?"))
    assert first.choices[0].message.content != other.choices[0].message.content
    assert first.usage.prompt_tokens > IMAGE_TOKENS
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    second = ask(client, question, answer, {"role": "user", "content": "and now?"})
    assert second.usage.prompt_tokens_details.cached_tokens > IMAGE_TOKENS
    assert server.metric("gateway_images_encoded_total", model="eyes") == 2
    assert server.metric("gateway_image_cache_bytes", model="eyes") > 0


def test_streams_and_choices_say_the_same(client: openai.OpenAI) -> None:
    # The tiny model is surest of each word about this picture: batches of other shapes sum in another order.
    question = user(image(png(50, 50, seed=128)), "what is it?")
    whole = ask(client, question, n=2)
    texts = {choice.message.content for choice in whole.choices}
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in ask(client, question, stream=True) if chunk.choices
    )
    assert texts == {streamed}


def test_many_at_once(client: openai.OpenAI) -> None:
    def one(seed: int) -> str:
        return str(ask(client, user(image(png(50, 50, seed=seed)), "what is it?")).choices[0].message.content)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(10, 14)))) > 1


BAD = {
    "truncated": image(png(64, 64)[:-40]),
    "huge": image(png_of(50_000, 50_000, b"")),
    "bomb": image(png_of(9, 9, zlib.compress(bytes(40_000_000)))),
    "not an image": image(b"hello"),
    "wrong type": image(png(9, 9), "text/html"),
    "file": {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    "metadata": {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
    "remote": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_bad_images_are_refused_and_the_worker_lives(client: openai.OpenAI, server: Server, bad: Any) -> None:
    workers = server.workers()
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, user("a", bad))
    assert caught.value.param == "messages[0].content[1]"
    assert server.workers() == workers


def test_a_model_without_eyes_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not take images") as caught:
        ask(client, user("a", image(png(9, 9))), model="blind")
    assert caught.value.param == "messages[0].content[1]"
    capabilities = {model.id: model.model_dump()["capabilities"] for model in client.models.list()}
    assert "vision" in capabilities["eyes"] and "vision" not in capabilities["blind"]
