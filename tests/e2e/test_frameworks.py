"""LangChain, LlamaIndex, instructor and LiteLLM against the running gateway."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from tests.e2e.server import ADMIN_KEY, ROOT, Server


def test_langchain_chat(server: Server) -> None:
    llm = ChatOpenAI(model="demo", base_url=f"{server.url}/v1", api_key=ADMIN_KEY, temperature=0)  # type: ignore[arg-type]
    question = [HumanMessage("What is the capital of France?")]
    answer = llm.invoke(question)
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] > 0
    assert "Paris" in "".join(str(chunk.content) for chunk in llm.stream(question))


def test_langchain_embeddings(server: Server) -> None:
    embeddings = OpenAIEmbeddings(
        model="team/embedder",
        base_url=f"{server.url}/v1",
        api_key=ADMIN_KEY,  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )
    assert len(embeddings.embed_documents(["one", "two"])) == 2


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=7)


def check(weather: Weather | dict[str, Any]) -> None:
    Weather.model_validate(weather)


def test_langchain_tools(server: Server) -> None:
    llm = ChatOpenAI(
        model="demo",
        base_url=f"{server.url}/v1",
        api_key=ADMIN_KEY,  # type: ignore[arg-type]
        temperature=0,
        max_completion_tokens=200,
    )
    question = [HumanMessage("What is the weather in Paris?")]
    for choice in ("any", "Weather"):
        bound = llm.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
        answer = bound.invoke(question)
        assert isinstance(answer, AIMessage)
        (call,) = answer.tool_calls
        check(call["args"])
        pieces = list(bound.stream(question))
        whole = sum(pieces[1:], pieces[0])
        assert whole.tool_calls[0]["name"] == "Weather"  # type: ignore[attr-defined]
        check(whole.tool_calls[0]["args"])  # type: ignore[attr-defined]
        told = llm.bind_tools([Weather]).invoke([*question, answer, ToolMessage("18 degrees", tool_call_id=call["id"])])
        assert "18" in str(told.content)
    for strict in (None, True):
        check(llm.with_structured_output(Weather, method="function_calling", strict=strict).invoke(question))


def run_client(name: str, server: Server, *more: str) -> list[str]:
    """The lines a script prints. These libraries need the previous major version of the SDK, so they have an
    environment of their own."""
    python = ROOT / ".venv/clients/bin/python"
    if not python.exists():
        pytest.fail("The older clients are not installed; run: make .venv/clients/.ready")
    script = Path(__file__).parent / "clients" / name
    output = subprocess.run(
        [str(python), str(script), f"{server.url}/v1", ADMIN_KEY, *more],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    return output.stdout.splitlines()


def test_llama_index(server: Server) -> None:
    chat, stream = run_client("llama_index_chat.py", server)[-2:]
    assert "Paris" in chat and "Paris" in stream


def test_function_calling_of_llama_index_and_instructor(server: Server) -> None:
    found = json.loads(run_client("llama_index_calls.py", server)[-1])
    assert found["call"][0] == "get_weather" and found["call"][1].split(", ")[0] in ("Paris", "Rome")
    for name in ("predicted", "made", "partial"):
        check(found[name])


SCRIPTS = {
    "broken": "answers: [{error: {code: model_unavailable}}]",
    "limited": "answers: [{error: {code: rate_limit_exceeded}}]",
    "flaky": "answers: [{error: {code: engine_failed}}, {text: At last}]",
}


def test_litellm(server: Server, tmp_path: Path) -> None:
    for name, script in SCRIPTS.items():
        (tmp_path / f"{name}.yaml").write_text(script)
    models = "".join(f"  - {{name: {name}, script: {name}.yaml}}\n" for name in SCRIPTS)
    with Server(tmp_path, config=f"models:\n{models}") as scripted:
        found = json.loads(run_client("litellm_client.py", server, f"{scripted.url}/v1")[-1])
    assert all("Paris" in found[name] for name in ("whole", "stream", "async", "async_stream"))
    assert found["tokens"] == found["stream_tokens"] > 0
    assert found["calls"] == [["get_weather", "Paris"], ["get_weather", "Paris"]]
    assert found["vectors"][0] == found["vectors"][1] > 0
    assert found["errors"] == {
        "key": ["AuthenticationError", 401],
        "model": ["NotFoundError", 404],
        "value": ["BadRequestError", 400],
        "long": ["ContextWindowExceededError", 400],
        "unavailable": ["ServiceUnavailableError", 503],
        "limited": ["RateLimitError", 429],
    }
    assert found["retried"] == "At last"
