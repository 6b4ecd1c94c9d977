from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from adapters.dialects import openai_embeddings
from adapters.errors import InvalidRequest
from adapters.types import EmbeddingRequest, Embeddings


def parse(**fields: Any) -> openai_embeddings.EmbeddingInbound:
    return openai_embeddings.parse_request(json.dumps({"model": "m", "input": "hi", **fields}).encode())


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("hi", ("hi",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_inputs(given: object, inputs: object) -> None:
    assert parse(input=given).request.inputs == inputs


def test_fields() -> None:
    inbound = parse(dimensions=8, encoding_format="base64", user="u")
    assert inbound == openai_embeddings.EmbeddingInbound(EmbeddingRequest("m", ("hi",), 8), base64=True)
    assert parse(dimensions=None, encoding_format=None) == parse(encoding_format="float")
    assert len(parse(input=["x"] * 2048).request.inputs) == 2048


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"encoding_format": 1}, "encoding_format"),
        ({"model": None}, "model"),
        ({"base_url": "http://x"}, "base_url"),
    ],
)
def test_wrong_values_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param is not None
    assert caught.value.param.partition("[")[0] == param


def test_answers() -> None:
    vectors = (struct.pack("<2f", 0.5, -0.25), struct.pack("<2f", 0.1, 1e-30))
    embeddings = Embeddings(vectors, 2, 5)
    numbers = json.loads(b"".join(openai_embeddings.render_answer("m", embeddings, as_base64=False)))
    texts = json.loads(b"".join(openai_embeddings.render_answer("m", embeddings, as_base64=True)))
    assert (numbers["object"], numbers["model"]) == ("list", "m")
    assert numbers["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [(item["object"], item["index"]) for item in numbers["data"]] == [("embedding", 0), ("embedding", 1)]
    assert tuple(struct.pack("<2f", *item["embedding"]) for item in numbers["data"]) == vectors
    assert tuple(base64.b64decode(item["embedding"]) for item in texts["data"]) == vectors
