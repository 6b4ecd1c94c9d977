"""What the engine relies on in llama.cpp, checked against the real library."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.demo import MODEL_PATH
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.loading import load
from adapters.llama_cpp.messages import Delta, EngineSettings, Load, Prepare, TokenPrompt
from adapters.llama_cpp.native import Context, Model, NativeError, quiet
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.preparation import Preparation
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Generation, Sampling

PROMPT = np.random.default_rng(0).integers(300, 500, 400).astype(np.int32)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    quiet()
    return Model(tiny_model, gpu_layers=0, progress=lambda fraction: None)


def context(model: Model, cells: int = 1024, flash_attention: str = "auto") -> Context:
    return Context(
        model,
        cells=cells,
        slots=12,
        batch_tokens=512,
        outputs_max=12,
        threads=1,
        lease=nullcontext(),
        flash_attention=flash_attention,
    )


def decode(context: Context, tokens: np.ndarray, position: int, slot: int) -> tuple[int, int]:
    """The return code, and the likeliest next token when it was 0."""
    batch = Batch(512, context.slots)
    batch.add(tokens.astype(np.int32), position, slot, outputs=1)
    code = context.decode(batch)
    return code, int(context.logits(1)[0].argmax()) if code == 0 else -1


def greedy(context: Context, slot: int, position: int, token: int, count: int = 12) -> list[int]:
    out = []
    for step in range(count):
        out.append(token)
        _, token = decode(context, np.array([token]), position + step, slot)
    return out


def test_a_shared_prefix_continues_as_its_source(model: Model) -> None:
    ctx = context(model)
    _, token = decode(ctx, PROMPT, 0, 0)
    ctx.share(0, 1, len(PROMPT))
    assert greedy(ctx, 0, len(PROMPT), token) == greedy(ctx, 1, len(PROMPT), token)


def test_a_restored_state_continues_to_the_bit(model: Model) -> None:
    ctx = context(model)
    _, token = decode(ctx, PROMPT, 0, 0)
    state = ctx.save(0)
    wanted = greedy(ctx, 0, len(PROMPT), token)
    ctx.remove(0)
    assert ctx.restore(0, state)
    assert greedy(ctx, 0, len(PROMPT), token) == wanted


def test_without_flash_attention_the_same_is_said_but_states_are_others(model: Model) -> None:
    flash, plain = context(model, flash_attention="on"), context(model, flash_attention="off")
    decode(flash, PROMPT, 0, 0)
    decode(plain, PROMPT, 0, 0)
    assert np.corrcoef(flash.logits(1)[0], plain.logits(1)[0])[0, 1] > 0.99
    assert not plain.restore(1, flash.save(0))
    assert plain.restore(1, plain.save(0))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_state_is_refused_and_leaves_nothing(model: Model, damage: str) -> None:
    ctx = context(model)
    _, token = decode(ctx, PROMPT, 0, 0)
    garbage = np.arange(10_000).astype(np.uint8)
    states = {"truncated": ctx.save(0)[:-100], "garbage": garbage, "empty": garbage[:0]}
    assert not ctx.restore(1, states[damage])
    assert decode(ctx, PROMPT, 0, 1) == (0, token)


def test_an_overflow_leaves_earlier_cells_intact(model: Model) -> None:
    ctx = context(model, cells=512)
    _, token = decode(ctx, PROMPT, 0, 0)
    assert decode(ctx, PROMPT, 0, 1) == (1, -1)
    assert greedy(ctx, 0, len(PROMPT), token)


def test_an_abort_undoes_the_batch(model: Model) -> None:
    ctx = context(model, cells=8192)
    for slot in range(10):
        decode(ctx, np.resize(PROMPT, 512), 0, slot)
    batch = Batch(512, ctx.slots)
    batch.add(np.resize(PROMPT, 512).astype(np.int32), 512, 0, outputs=1)
    codes: list[int] = []
    for _ in range(50):
        thread = threading.Thread(target=lambda: codes.append(ctx.decode(batch)))
        thread.start()
        time.sleep(0.002)
        ctx.abort()
        thread.join()
        if codes[-1] == 2:
            break
        ctx.remove(0, 512)
    assert codes[-1] == 2
    assert ctx.decode(batch) == 0, "the same positions must be free again"


def test_what_llama_cpp_would_abort_on_is_refused_here(model: Model) -> None:
    ctx = context(model)
    batch = Batch(512, ctx.slots)
    batch.add(PROMPT[:100], 0, 0, outputs=100)
    with pytest.raises(AssertionError):
        ctx.decode(batch)
    with pytest.raises(AssertionError):
        batch.add(PROMPT[:1], 0, ctx.slots, outputs=0)
    gap = Batch(512, ctx.slots)
    gap.add(PROMPT[:10], 5, 0, outputs=1)
    decode(ctx, PROMPT[:2], 0, 0)
    with pytest.raises(NativeError):
        ctx.decode(gap)


def test_tokens_and_text_agree(model: Model) -> None:
    vocabulary = model.vocabulary
    text = "Hello wörld, 東京 🦊!\n\n  two  spaces"
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocabulary.piece(int(token)) for token in tokens).decode() == text
    end = vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert len(end) == 1 and int(end[0]) in vocabulary.end
    assert vocabulary.piece(int(end[0])) == b"" and vocabulary.text(int(end[0])) == b"<|im_end|>"


def scheduler(
    model: Model, cells: int = 2048, *, padding: Mapping[int, int] | None = None, spare: Mapping[int, int] | None = None
) -> Scheduler:
    ctx = context(model, cells)
    sessions = Sessions(ctx, Budget(ram_bytes=1 << 28, ttl_s=1e9), lambda: time.time_ns() // 1000)
    limits = Limits(parallel=4, chunk_tokens=256, target_gap_us=10**6, padding=padding or {}, tile=64, spare=spare)
    return Scheduler(ctx, sessions, limits, Rates(100.0, 1000.0), lambda: time.monotonic_ns() // 1000)


def sequence(
    model: Model, id: int, prompt: np.ndarray, generation: Generation, count: int = 40, tenant: str = "a"
) -> Sequence:
    return Sequence(
        id,
        0,
        prompt.astype(np.int32),
        generation,
        tenant=tenant,
        session_key=None,
        max_tokens=count,
        pieces=model.vocabulary,
    )


def run(scheduler: Scheduler) -> Iterator[Delta]:
    while not scheduler.idle:
        yield from scheduler.step()


def test_a_seed_repeats_on_an_idle_engine_whatever_came_before(model: Model) -> None:
    engine = scheduler(model)
    seeded = Generation(sampling=Sampling(temperature=0.9, seed=11))
    texts = set()
    for round in range(4):
        engine.submit([sequence(model, round, PROMPT, seeded, tenant="ab"[round % 2])])
        texts.add("".join(delta.text for delta in run(engine)))
        engine.submit([sequence(model, 100 + round, PROMPT[: 50 * round + 20], Generation())])
        list(run(engine))
    assert len(texts) == 1


def test_echoed_prompts_are_scored_token_by_token(model: Model) -> None:
    engine = scheduler(model)
    scored = Sequence(
        1,
        0,
        PROMPT[:70],
        Generation(logprobs=3, sampling=Sampling(temperature=0)),
        tenant="a",
        session_key=None,
        max_tokens=2,
        pieces=model.vocabulary,
        echo="the prompt",
    )
    engine.submit([scored])
    deltas = list(run(engine))
    scores = [score for delta in deltas for score in delta.logprobs]
    assert deltas[0].text.startswith("the prompt")
    assert [score.token_id for score in scores[:70]] == PROMPT[:70].tolist()
    assert scores[0].logprob is None and len(scores) == 72
    ctx = context(model)
    for position in range(5):
        batch = Batch(512, ctx.slots)
        batch.add(PROMPT[position : position + 1], position, 0, outputs=1)
        ctx.decode(batch)
        row = ctx.logits(1)[0].astype(np.float64)
        wanted = row[PROMPT[position + 1]] - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert scores[position + 1].logprob == pytest.approx(wanted, abs=0.05)
        assert [one.logprob for one in scores[position + 1].top] == sorted(
            (one.logprob for one in scores[position + 1].top), reverse=True
        )


QUESTIONS = ("Count from 1 to 20.", "Tell me a short story about a dragon.", "Tell me a story about a fox.")


def said(model: Model, spare: dict[int, int], steps: int) -> tuple[list[str], int]:
    """What three streams say in so many steps, and how many guesses were right."""
    engine = scheduler(model, padding={3: 4}, spare=spare)
    for id, question in enumerate(QUESTIONS):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = model.vocabulary.tokenize(text, add_special=False, parse_special=True)
        engine.submit([sequence(model, id, prompt, Generation(sampling=Sampling(temperature=0)), 200)])
    deltas = [delta for _ in range(steps) for delta in engine.step()]
    texts = ["".join(delta.text for delta in deltas if delta.id == id) for id in range(len(QUESTIONS))]
    return texts, engine.busyness().guesses_right


def test_with_guesses_the_same_is_said_sooner() -> None:
    quiet()
    model = Model(MODEL_PATH, gpu_layers=0, progress=lambda fraction: None)
    plain, none = said(model, {}, 45)
    guessed, right = said(model, {3: 1}, 45)
    assert all(more.startswith(less) for more, less in zip(guessed, plain, strict=True))
    assert sum(map(len, guessed)) > sum(map(len, plain))
    assert right > 5 and none == 0


@pytest.mark.parametrize("parallel", [20, 256])
def test_whatever_may_run_together_has_a_row_in_a_step(tiny_model: Path, parallel: int) -> None:
    """Also where a step has fewer tokens than that, and llama.cpp fewer sequences."""
    settings = EngineSettings(parallel=parallel, chunk_tokens=16, threads=1, context_tokens=64, cache_tokens=8192)
    loaded = load(Load(str(tiny_model), settings), lambda fraction: None, nullcontext())
    scheduler, preparation = loaded.scheduler, Preparation(loaded)
    assert scheduler is not None
    for id in range(parallel):
        generation = Generation(max_tokens=5, ignore_eos=True)
        scheduler.submit(preparation.sequences(Prepare(id, "a", TokenPrompt((id, 1)), generation))[0])
    tokens = 0
    while not scheduler.idle:
        tokens += sum(delta.tokens for delta in scheduler.step())
    assert tokens == 5 * parallel
