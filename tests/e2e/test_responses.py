"""OpenAI's SDK and LangChain over the Responses API of the real server: a local model, a scripted one, and another
gateway that the request is passed on to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.e2e.server import ADMIN_KEY, Server

CONFIG = """
models:
  - {{name: canned, script: {script}}}
providers:
  - {{name: next, kind: gateway, base_url: "{url}/v1", api_key: "{key}"}}
routes:
  - {{name: far, groups: [[{{provider: next, model: demo, price: {{input: "1", output: "2"}}}}]]}}
  - {{name: held, groups: [[{{provider: next, model: demo, dialect: openai_responses}}]]}}
"""
SCRIPT = """
answers:
  - match: broken
    text: This breaks off
    error: {code: engine_failed, after_chunks: 2}
  - match: tool says 18
    text: It is 18 degrees.
  - match: weather
    reasoning: I have to look that up.
    tool_calls: [{name: get_weather, arguments: '{"city": "Lisbon", "days": 1}'}]
"""
PARIS = "What is the capital of France?"
GREEDY: Any = {"temperature": 0, "max_output_tokens": 50}


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome", "Lisbon"]
    days: int = Field(ge=1, le=7)


TOOL: Any = {"type": "function", "name": "get_weather", "parameters": Weather.model_json_schema(), "strict": False}


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("responses")
    script = folder / "canned.yaml"
    script.write_text(SCRIPT)
    with Server(folder, config=CONFIG.format(script=script, url=server.url, key=ADMIN_KEY)) as front:
        yield front


@pytest.fixture
def near(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def far(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("door", "model"), [("near", "demo"), ("far", "far")])
def test_text_streams_and_structure(door: str, model: str, request: pytest.FixtureRequest) -> None:
    client: openai.OpenAI = request.getfixturevalue(door)
    raw = client.responses.with_raw_response.create(model=model, input=PARIS, instructions="Be brief.", **GREEDY)
    answer = raw.parse()
    assert "Paris" in answer.output_text and answer.status == "completed" and answer.store is False
    assert answer.usage is not None and answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0
    assert raw.headers["x-gateway-model"] == model and raw.headers["x-request-id"]
    with client.responses.stream(model=model, input=PARIS, instructions="Be brief.", **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == answer.output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    parsed = client.responses.parse(
        model=model, input="The weather in Rome for two days", text_format=Weather, **GREEDY
    )
    assert parsed.output_parsed is not None
    cut = client.responses.create(model=model, input="Tell me a story.", temperature=0, max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(("door", "model"), [("near", "demo"), ("far", "far")])
def test_turns_with_tools(door: str, model: str, request: pytest.FixtureRequest) -> None:
    client: openai.OpenAI = request.getfixturevalue(door)
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    ask: Any = {"model": model, "tools": [TOOL], "temperature": 0, "parallel_tool_calls": False}
    called = client.responses.create(**ask, input=turns, tool_choice="required")
    (call,) = [item for item in called.output if item.type == "function_call"]
    Weather.model_validate_json(call.arguments)
    turns += called.output
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"})
    with client.responses.stream(**ask, input=turns) as stream:
        assert "18" in stream.get_final_response().output_text
    counted = client.responses.input_tokens.count(model=model, input=turns, tools=[TOOL])
    assert counted.input_tokens > 10


def test_chats_with_a_model_that_is_only_there(far: openai.OpenAI) -> None:
    ask: Any = {"model": "held", "temperature": 0, "max_tokens": 50}
    paris: Any = [{"role": "user", "content": PARIS}]
    whole = far.chat.completions.create(**ask, messages=paris)
    assert "Paris" in str(whole.choices[0].message.content) and whole.usage is not None
    with far.chat.completions.stream(**ask, messages=paris, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage is not None and final.usage.completion_tokens == whole.usage.completion_tokens
    function = {key: TOOL[key] for key in ("name", "parameters")}
    called = far.chat.completions.create(
        **ask,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": function}],  # type: ignore[list-item]
        tool_choice="required",
    )
    assert called.choices[0].finish_reason == "tool_calls" and called.choices[0].message.tool_calls
    with pytest.raises(openai.BadRequestError) as caught:
        far.chat.completions.create(**ask, messages=paris, stop="x")
    assert caught.value.param == "stop"


def test_thoughts_and_failures_of_a_script(far: openai.OpenAI) -> None:
    answer = far.responses.create(model="canned", input="the weather", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "function_call"]
    assert answer.output[0].summary[0].text == "I have to look that up."
    with (
        pytest.raises(openai.APIError) as caught,
        far.responses.stream(model="canned", input="broken") as stream,
    ):
        for _ in stream:
            pass
    assert caught.value.code == "model_unavailable"


def test_what_would_be_kept_is_refused(near: openai.OpenAI) -> None:
    for more, param in (({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id")):
        with pytest.raises(openai.BadRequestError) as caught:
            near.responses.create(model="demo", input=PARIS, **more)
        assert caught.value.param == param


def test_it_is_charged_and_runs_once(front: Server) -> None:
    with front.client() as client:
        ask = {"model": "far", "input": PARIS, **GREEDY}
        first, again = (client.post("/v1/responses", json=ask, headers={"Idempotency-Key": "one"}) for _ in range(2))
        assert first.content == again.content
        usage = first.json()["usage"]
        (entry,) = client.get(f"/v1/requests/{first.headers['x-request-id']}").json()["data"]
    assert entry["usage"]["prompt_tokens"] == usage["input_tokens"] and not entry["usage"]["estimated"]
    micros = usage["input_tokens"] + 2 * usage["output_tokens"]
    assert float(entry["cost_usd"]) == pytest.approx(micros / 1e6)


@pytest.mark.parametrize("door", ["server", "front"])
def test_langchain(door: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(door)
    llm = ChatOpenAI(
        model="demo" if door == "server" else "far",
        base_url=f"{server.url}/v1",
        api_key=ADMIN_KEY,  # type: ignore[arg-type]
        temperature=0,
        max_completion_tokens=200,
        use_responses_api=True,
    )
    answer = llm.invoke([HumanMessage(PARIS)])
    assert "Paris" in str(answer.text) and answer.usage_metadata is not None
    pieces = list(llm.stream([HumanMessage(PARIS)]))
    assert sum(pieces[1:], pieces[0]).text == answer.text
    question = [HumanMessage("What is the weather in Paris?")]
    called = llm.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False).invoke(question)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    Weather.model_validate(call["args"])
    told = llm.bind_tools([Weather]).invoke([*question, called, ToolMessage("18 degrees", tool_call_id=call["id"])])
    assert "18" in str(told.text)
    found = llm.with_structured_output(Weather, method="json_schema").invoke("The weather in Rome for two days")
    Weather.model_validate(found)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"model":"demo","input":NaN}', b'{"model":"demo","input":"\\ud800"}', b"\xff", b"[" * 100_000],
    ids=range(7),
)
def test_what_is_not_json(server: Server, content: bytes) -> None:
    with server.client() as client:
        answer = client.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and json.loads(answer.text)["error"]["type"] == "invalid_request_error"


FAR_IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "http://169.254.169.254/"}]}
BAD_SCHEMA = {"type": "json_schema", "name": "a", "schema": {"pattern": "(a*)*b"}, "strict": True}


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"api_base": "http://127.0.0.1:1"}, 400),
        ({"model": "nobody"}, 404),
        ({"input": "word " * 100_000}, 400),
        ({"input": [FAR_IMAGE]}, 400),
        ({"text": {"format": BAD_SCHEMA}}, 400),
        ({"max_output_tokens": 2**40}, 400),
        ({"temperature": "hot"}, 400),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, 400),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(server: Server, more: dict[str, object], status: int) -> None:
    with server.client() as client:
        answer = client.post("/v1/responses", json={"model": "demo", "input": "x", "max_output_tokens": 5} | more)
    assert answer.status_code == status
    found = answer.json()["error"]
    assert found["message"] and found["type"] and answer.headers["x-request-id"]
