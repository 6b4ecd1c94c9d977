"""Structured output through the real server: clients as they are used, and schemas that are made to hurt."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pytest
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel

from tests.e2e.server import ADMIN_KEY, Server
from tests.models import random_gguf

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENTRIES = (CHAT, COMPLETIONS)
QUESTION = "Give me JSON with name Lucy, age 9 and color green."


class Person(BaseModel):
    name: str
    age: int
    color: Literal["red", "green", "blue"]


SCHEMA = Person.model_json_schema()


@pytest.fixture(autouse=True)
def nothing_died(server: Server) -> Iterator[None]:
    before = (server.process.pid, sorted(server.workers()))
    yield
    assert server.process.poll() is None
    assert (server.process.pid, sorted(server.workers())) == before


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


def ask(server: Server, path: str = CHAT, *, schema: str = "", **fields: Any) -> Any:
    """A chat or completion with these fields, decoded; refusals too. `schema` is JSON that goes where `...` stands."""
    prompt = {"messages": [{"role": "user", "content": QUESTION}]} if path == CHAT else {"prompt": QUESTION + "\n"}
    content = json.dumps({"model": "demo", "max_tokens": 200, "temperature": 0} | prompt | fields)
    with server.client() as http:
        headers = {"Content-Type": "application/json"}
        answer = http.post(path, content=content.replace('"..."', schema).encode(), headers=headers)
    return answer.json() | {"status": answer.status_code}


def texts(answer: Any) -> list[str]:
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]


# Clients


def test_parse_gives_a_pydantic_object(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=[{"role": "user", "content": QUESTION}], response_format=Person, temperature=0
    )
    assert answer.choices[0].message.parsed == Person(name="Lucy", age=9, color="green")
    assert answer.choices[0].finish_reason == "stop"


def test_parse_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=[{"role": "user", "content": QUESTION}], response_format=Person, temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.delta") > 3
    assert final.choices[0].message.parsed == Person(name="Lucy", age=9, color="green")


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_langchain_with_structured_output(server: Server, method: str) -> None:
    llm = ChatOpenAI(model="demo", base_url=f"{server.url}/v1", api_key=ADMIN_KEY, temperature=0)
    found = llm.with_structured_output(Person, method=method).invoke(QUESTION)
    assert found == Person(name="Lucy", age=9, color="green")


# Spellings and combinations

SPELLINGS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}}, r"\{.*\}"),
    ({"structured_outputs": {"json": SCHEMA}}, r"\{.*\}"),
    ({"structured_outputs": {"regex": "[0-9]{3}-[a-z]{2}"}}, r"[0-9]{3}-[a-z]{2}"),
    ({"structured_outputs": {"choice": ["Paris", "London"]}}, "Paris|London"),
    ({"structured_outputs": {"grammar": 'start: "a" b\nb: "x" | "y"'}}, "a[xy]"),
    ({"structured_outputs": {"json_object": True}}, r"\{.*\}"),
    ({"guided_regex": "[ab]{4}"}, "[ab]{4}"),
    ({"guided_choice": ["one"]}, "one"),
    ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
    ({"json_schema": SCHEMA}, r"\{.*\}"),
]


@pytest.mark.parametrize("path", ENTRIES)
@pytest.mark.parametrize(("fields", "pattern"), SPELLINGS, ids=lambda value: str(value)[:50])
def test_every_spelling_holds_the_answer_to_it(server: Server, path: str, fields: dict[str, Any], pattern: str) -> None:
    for more in ({}, {"temperature": 1, "n": 3, "seed": 1}):
        answer = ask(server, path, **fields, **more)
        for text, choice in zip(texts(answer), answer["choices"], strict=True):
            assert choice["finish_reason"] in ("stop", "length")
            assert choice["finish_reason"] == "length" or re.fullmatch(pattern, text, re.DOTALL), text


def test_plain_text_is_no_constraint(server: Server) -> None:
    assert ask(server, response_format={"type": "text"})["status"] == 200


def test_logprobs_give_the_same_text_and_score_every_token(server: Server) -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}}
    plain, scored = ask(server, **form), ask(server, **form, logprobs=True, top_logprobs=2)
    assert texts(plain) == texts(scored)
    tokens = scored["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == texts(scored)[0]
    assert len(tokens) == scored["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


def test_stop_strings_and_the_token_limit_still_end_it(server: Server) -> None:
    stopped = ask(server, json_schema=SCHEMA, stop=['"age"'])
    assert texts(stopped)[0].endswith(", ") and stopped["choices"][0]["finish_reason"] == "stop"
    cut = ask(server, json_schema={"const": "a long and forced answer of many tokens"}, max_tokens=4)
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 4


def test_what_is_forced_is_counted_and_comes_out_whole(server: Server) -> None:
    answer = ask(server, json_schema={"const": "größe 世界 🎉 and more"})
    assert json.loads(texts(answer)[0]) == "größe 世界 🎉 and more"
    assert answer["usage"]["completion_tokens"] > 5 and answer["choices"][0]["finish_reason"] == "stop"


def test_echo_comes_before_the_answer(server: Server) -> None:
    assert re.fullmatch(
        re.escape(QUESTION) + r"\n(yes|no)", texts(ask(server, COMPLETIONS, guided_choice=["yes", "no"], echo=True))[0]
    )


def test_many_at_once_keep_to_their_own(server: Server) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = texts(ask(server, structured_outputs={"regex": f"{number}[a-z]{{5}}"}, temperature=1))[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(re.fullmatch(f"{number}[a-z]{{5}}", text) for number, text in found.items()) and len(found) == 12


# Models that think

THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of random weights that thinks until it is stopped."""
    folder = tmp_path_factory.mktemp("thinking")
    model = random_gguf.llama_tiny(folder / "thinker.gguf", chat_template=THINKING)
    with Server(folder, str(model)) as made:
        yield made


NARROW = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("more", [{}, {"temperature": 1, "n": 3}, {"logprobs": True}])
def test_the_answer_of_a_model_that_thinks_is_held_to_the_form(thinking: Server, more: dict[str, Any]) -> None:
    answer = ask(thinking, model="thinker", json_schema=NARROW, thinking_budget_tokens=6, **more)
    for choice in answer["choices"]:
        assert choice["message"]["reasoning_content"]
        jsonschema.validate(json.loads(choice["message"]["content"]), NARROW)
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] >= 6


def test_thoughts_that_are_switched_off_leave_the_form_alone(thinking: Server) -> None:
    answer = ask(thinking, model="thinker", json_schema=NARROW, chat_template_kwargs={"enable_thinking": False})
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    jsonschema.validate(json.loads(texts(answer)[0]), NARROW)


# What is made to hurt


HOSTILE: dict[str, Any] = {
    "nested quantifiers": {"type": "string", "pattern": "^(a*)*b$"},
    "counted quantifiers": {"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100})$"},
    "depth 200": "nested",
    "depth 2,000": "nested",
    "depth 6,000": "nested",
    "100k enum": {"enum": [f"value {n}" for n in range(100_000)]},
    "huge maxLength": {"type": "string", "maxLength": 10**9},
    "huge minItems": {"type": "array", "minItems": 10**12},
    "ref to itself": {"$ref": "#"},
    "ref loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "needs itself": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "remote ref": "remote",
    "file ref": {"$ref": "file:///etc/passwd"},
    "ref to nothing": {"$ref": "#/$defs/nothing"},
    "endless intersection": {"allOf": [{"type": "string", "pattern": f".*a{'.' * n}b{n}.*"} for n in range(20)]},
    "wide": {"type": "object", "properties": {f"p{n}": {"pattern": f"^{n}[a-z]*$"} for n in range(5000)}},
    "primes": {"type": "integer", "multipleOf": 999_999_937},
    "not": {"not": {"type": "string"}},
    "unique items": {"type": "array", "uniqueItems": True},
    "bad type": {"type": "wizard"},
    "bad bounds": {"type": "integer", "minimum": 2, "maximum": 1},
    "look-ahead": {"type": "string", "pattern": "^(?=a)b$"},
    "broken pattern": {"type": "string", "pattern": "(a"},
    "false": {"anyOf": [False]},
    "not a schema": 5,
    "broken text": "{",
}


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.0)
        yield listening


@pytest.mark.parametrize("path", ENTRIES)
@pytest.mark.parametrize("spelling", ["response_format", "structured_outputs", "json_schema", "guided_json"])
@pytest.mark.parametrize("name", HOSTILE)
def test_schemas_that_are_made_to_hurt(
    server: Server, listener: socket.socket, name: str, path: str, spelling: str
) -> None:
    schema = json.dumps(HOSTILE[name])
    if name.startswith("depth"):
        depth = int(name.removeprefix("depth ").replace(",", ""))
        schema = '{"type":"array","items":' * depth + "{}" + "}" * depth
    elif name == "remote ref":
        schema = json.dumps({"$ref": f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"})
    fields: dict[str, Any] = {spelling: "..."}
    if spelling == "response_format":
        fields = {spelling: {"type": "json_schema", "json_schema": {"name": "x", "schema": "...", "strict": True}}}
    if spelling == "structured_outputs":
        fields = {spelling: {"json": "..."}}
    answer = ask(server, path, schema=schema, **fields)
    assert answer["status"] == 400, answer
    early = name == "depth 2,000" and sys.version_info < (3, 13) and answer["error"]["code"] == "invalid_json"
    if early or name == "depth 6,000" or (name == "depth 2,000" and sys.version_info < (3, 12)):
        # Too deep for the body as a whole. Python 3.11 decodes nearly a thousand levels, early 3.12 not many more.
        assert answer["error"]["code"] == "invalid_json"
        return
    assert answer["error"]["code"] in ("invalid_schema", "unsupported_schema")
    assert answer["error"]["param"] == spelling
    with pytest.raises(BlockingIOError):
        listener.accept()


NO_GRAMMARS = (
    "",
    "  ",
    "root ::= foo",
    "root ::= root",
    'root ::= root "a" | "b"',
    'root ::= "a" root',
    'x ::= "a"',
    'root ::= "a',
    "root ::= " + "(" * 5000,
    "%llguidance {}\nstart: foo",
    "%llguidance {}\nstart: start",
)


@pytest.mark.parametrize("path", ENTRIES)
@pytest.mark.parametrize("source", NO_GRAMMARS, ids=lambda source: source[:20])
def test_grammars_that_are_none(server: Server, path: str, source: str) -> None:
    answer = ask(server, path, grammar=source)
    assert (answer["status"], answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_schema", "grammar")
    answer = ask(server, path, structured_outputs={"grammar": source})
    assert (answer["status"], answer["error"]["param"]) == (400, "structured_outputs")


def test_an_unsupported_keyword_is_named(server: Server) -> None:
    answer = ask(server, json_schema={"type": "object", "properties": {"a": {"not": {}, "if": {}}}})
    assert answer["error"]["code"] == "unsupported_schema"
    assert "'not'" in answer["error"]["message"] and "'if'" in answer["error"]["message"]


def test_others_go_on_while_schemas_are_made_to_hurt(server: Server) -> None:
    """And what has been refused does not keep anybody from a good schema."""
    endless = HOSTILE["endless intersection"]
    hurting = [threading.Thread(target=ask, args=(server,), kwargs={"json_schema": endless}) for _ in range(4)]
    for thread in hurting:
        thread.start()
    assert ask(server)["status"] == 200
    for thread in hurting:
        thread.join()
    answer = ask(server, json_schema=SCHEMA)
    jsonschema.validate(json.loads(texts(answer)[0]), SCHEMA)


def test_no_process_is_left_behind(server: Server) -> None:
    """The worker keeps at most one process to try grammars in."""
    ask(server, json_schema=HOSTILE["endless intersection"])
    ask(server, json_schema=SCHEMA | {"title": os.urandom(4).hex()})
    for worker in server.workers():
        with open(f"/proc/{worker}/task/{worker}/children") as children:  # noqa: PTH123
            assert len(children.read().split()) <= 1
