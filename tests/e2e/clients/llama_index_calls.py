"""Calls functions through LlamaIndex and instructor: `llama_index_calls.py BASE_URL KEY`; prints JSON."""

import json
import sys
from typing import Literal

import instructor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel, Field

base_url, key = sys.argv[1:]


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=7)


def get_weather(city: Literal["Paris", "Rome"], days: int) -> str:
    """Tell the weather in a city for some days."""
    return f"{city}, {days}"


llm = OpenAILike(
    model="demo",
    api_base=base_url,
    api_key=key,
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
    max_tokens=200,
)
tool = FunctionTool.from_defaults(fn=get_weather)
question = "What is the weather in Paris?"
answer = llm.chat_with_tools([tool], user_msg=question, tool_required=True)
(call,) = llm.get_tool_calls_from_response(answer)[:1]
predicted = llm.structured_predict(Weather, PromptTemplate("What is the weather in {city}?"), city="Rome")
client = instructor.from_openai(OpenAI(base_url=base_url, api_key=key), mode=instructor.Mode.TOOLS)
made = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": question}],
    response_model=Weather,
    temperature=0,
    max_tokens=200,
    max_retries=0,
)
partial = list(
    client.chat.completions.create_partial(
        model="demo",
        messages=[{"role": "user", "content": question}],
        response_model=Weather,
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )
)
print(
    json.dumps(
        {
            "call": [call.tool_name, tool(**call.tool_kwargs).content],
            "predicted": predicted.model_dump(),
            "made": made.model_dump(),
            "partial": partial[-1].model_dump(),
        }
    )
)
