"""Uses a gateway through LiteLLM: `litellm_client.py BASE_URL KEY SCRIPTED_URL`; prints what came back as JSON."""

import asyncio
import json
import os
import sys

# It would fetch its table of prices from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

base_url, key, scripted_url = sys.argv[1:]
demo = {"model": "openai/demo", "api_base": base_url, "api_key": key, "max_retries": 0, "temperature": 0}
question = [{"role": "user", "content": "What is the capital of France?"}]
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


def text_of(chunks: list[litellm.ModelResponse]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def later() -> dict[str, object]:
    whole = await litellm.acompletion(messages=question, **demo)
    stream = await litellm.acompletion(messages=question, stream=True, **demo)
    return {"async": whole.choices[0].message.content, "async_stream": text_of([chunk async for chunk in stream])}


def called() -> list[object]:
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    tools = {"tools": [weather], "tool_choice": "required", "max_tokens": 200}
    whole = litellm.completion(messages=asked, **tools, **demo)
    chunks = list(litellm.completion(messages=asked, stream=True, **tools, **demo))
    built = litellm.stream_chunk_builder(chunks)
    calls = [one.choices[0].message.tool_calls[0].function for one in (whole, built)]
    return [[call.name, json.loads(call.arguments)["city"]] for call in calls]


def refused(**changed: object) -> list[object]:
    try:
        litellm.completion(**({"messages": question} | demo | changed))
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return []


whole = litellm.completion(messages=question, **demo)
stream = list(litellm.completion(messages=question, stream=True, stream_options={"include_usage": True}, **demo))
vectors = litellm.embedding(
    model="openai/team/embedder", input=["one", "two"], api_base=base_url, api_key=key, encoding_format="float"
)
scripted = demo | {"api_base": scripted_url}
found = {
    "whole": whole.choices[0].message.content,
    "tokens": whole.usage.total_tokens,
    "stream": text_of(stream),
    "stream_tokens": next(chunk.usage.total_tokens for chunk in stream if getattr(chunk, "usage", None)),
    "calls": called(),
    "vectors": [len(one["embedding"]) for one in vectors.data],
    "errors": {
        "key": refused(api_key="gw_live_wrong"),
        "model": refused(model="openai/none"),
        "value": refused(temperature=9),
        "long": refused(messages=[{"role": "user", "content": "word " * 50000}]),
        "unavailable": refused(**scripted | {"model": "openai/broken"}),
        "limited": refused(**scripted | {"model": "openai/limited"}),
    },
    "retried": litellm.completion(messages=question, **scripted | {"model": "openai/flaky", "max_retries": 2})
    .choices[0]
    .message.content,
}
print(json.dumps(found | asyncio.run(later())))
