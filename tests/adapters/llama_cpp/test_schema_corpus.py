"""Every schema of the corpus gives valid output at temperature 1, from a model whose weights are random."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from adapters.llama_cpp.grammar import Compiler, Guide, Masks
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.native import Context, Model, quiet
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Constraint, Generation, Sampling
from tests.adapters.llama_cpp.schema_corpus import Schema, corpus

TOKENS_MAX = 600
PARALLEL = 8
SEEDS = 1
DEMO = Path(__file__).parents[3] / "adapters/llama_cpp/demo/demo.gguf"


def answers(model_path: Path, schemas: list[Schema], temperature: float = 1.0) -> list[tuple[str, str]]:
    """The text and finish reason of each schema."""
    quiet()
    model = Model(model_path, gpu_layers=0, progress=lambda fraction: None)
    slots = PARALLEL + 2
    context = Context(
        model, cells=8192, slots=slots, batch_tokens=512, outputs_max=slots, threads=1, lease=nullcontext()
    )
    compiler, masks = Compiler(model.vocabulary), Masks(model.vocabulary.size, PARALLEL)
    limits = Limits(parallel=PARALLEL, chunk_tokens=512, target_gap_us=10**6, padding={}, tile=1)
    sessions = Sessions(context, Budget(ram_bytes=0, ttl_s=1.0), lambda: time.time_ns() // 1000)
    scheduler = Scheduler(
        context, sessions, limits, Rates(100.0, 1000.0), lambda: time.monotonic_ns() // 1000, masks=masks
    )
    # A push towards the ends of things: random weights have no reason to write them.
    closing = {token: 3.0 for text in ('"', "}", "]", ",") for token in compiler.prepare().tokenize_str(text)}
    prompt = model.vocabulary.tokenize("<|im_start|>assistant\n", add_special=True, parse_special=True)
    for id, schema in enumerate(schemas):
        sampling = Sampling(temperature=temperature, seed=id, logit_bias=closing if temperature else {})
        compiled = compiler.compile(Constraint("json_schema", json.dumps(schema)))
        sequence = Sequence(
            id,
            0,
            np.append(prompt, np.int32(300 + id % 200)),
            Generation(sampling=sampling),
            tenant=str(id),
            session_key=None,
            max_tokens=TOKENS_MAX,
            pieces=model.vocabulary,
            guide=compiler.guide(compiled),
        )
        scheduler.submit([sequence])
    deltas: list[Delta] = []
    while not scheduler.idle:
        deltas += scheduler.step()
    assert not scheduler.failures
    texts = ["" for _ in schemas]
    ends = ["" for _ in schemas]
    for delta in deltas:
        texts[delta.id] += delta.text
        ends[delta.id] = delta.finish or ends[delta.id]
    masks.close()
    compiler.close()
    return list(zip(texts, ends, strict=True))


@pytest.mark.slow
def test_all_schemas_give_valid_answers(tiny_model: Path) -> None:
    schemas = corpus()
    assert len(schemas) >= 230
    cut = 0
    wrong: list[tuple[Schema, str, str]] = []
    for (text, end), schema in zip(answers(tiny_model, schemas * SEEDS), schemas * SEEDS, strict=True):
        if end == "length":
            cut += 1
            continue
        try:
            value: Any = json.loads(text)
            jsonschema.validate(value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        except (ValueError, jsonschema.ValidationError, jsonschema.SchemaError) as error:
            wrong.append((schema, text, str(error).splitlines()[0]))
    assert not wrong
    assert cut <= 0.03 * SEEDS * len(schemas), f"{cut} answers came to no end"


@pytest.mark.slow
def test_forced_tokens_do_not_change_what_a_trained_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are split as the model was taught to see them, so it goes on just the same. Answers that come to no end
    repeat themselves, and there the last bits of another batch may decide what is next."""
    schemas = corpus(0)[::4]
    jumping = answers(DEMO, schemas, temperature=0)
    monkeypatch.setattr(Guide, "forced", lambda guide, most: [])
    both = list(zip(answers(DEMO, schemas, temperature=0), jumping, strict=True))
    ended = [(one, other) for one, other in both if one[1] != "length"]
    assert len(ended) >= 0.8 * len(schemas)
    assert all(one == other for one, other in ended)
