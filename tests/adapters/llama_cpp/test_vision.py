"""A vision model through its worker: what images do to answers, caches and the process."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from llama_cpp import mtmd_cpp

from adapters.errors import InvalidRequest
from adapters.llama_cpp import LlamaCpp, vision
from adapters.llama_cpp.images import Sight, position
from adapters.llama_cpp.messages import Busyness, EngineSettings
from adapters.llama_cpp.native import Model, NativeError, quiet
from adapters.llama_cpp.vision import Projector
from adapters.types import (
    Caller,
    ChatRequest,
    Finished,
    Generation,
    ImagePart,
    ImageUrl,
    Message,
    Sampling,
    TextDelta,
    TextPart,
    Usage,
)
from tests.models import random_gguf, random_vision
from tests.models.random_vision import png, png_of

IMAGE_TOKENS = 64
# Pictures about which the tiny model is sure of each word, by 0.4 and 0.7 in the logarithm. Batches of other shapes sum
# in another order, which moves its logits by up to 0.2.
CLEAR = 71
CLEAREST = (38, 43, 109, 143)


def picture(seed: int = 0) -> ImagePart:
    return ImagePart(png(200, 150, seed=seed), "image/png")


def user(*parts: str | ImagePart) -> Message:
    return Message("user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


class Asker:
    """Asks a loaded model greedily; the last usage stays readable."""

    def __init__(self, model: LlamaCpp) -> None:
        self.model = model
        self.usage = Usage()

    async def ask(self, *messages: Message, tenant: str = "a", n: int = 1, count: int = 12) -> list[str]:
        generation = Generation(max_tokens=count, n=n, sampling=Sampling(temperature=0))
        texts = [""] * n
        async for event in self.model.chat(ChatRequest("m", messages, generation=generation), Caller("r", tenant)):
            if isinstance(event, TextDelta):
                texts[event.choice] += event.text
            elif isinstance(event, Finished):
                self.usage = event.usage
        return texts

    async def tokens(self, *messages: Message) -> int:
        return (await self.model.apply_template(ChatRequest("m", messages)))[1]

    @property
    def busyness(self) -> Busyness:
        busyness = self.model.status().busyness
        assert busyness is not None
        return busyness


def with_model(
    path: Path, projector: Path | None, work: Callable[[Asker], Awaitable[None]], *, cache: int = 1 << 20
) -> None:
    async def run() -> None:
        settings = EngineSettings(
            threads=1,
            context_tokens=512,
            cache_tokens=2048,
            mmproj=str(projector) if projector else None,
            image_cache_bytes=cache,
        )
        model = LlamaCpp("m", str(path), settings)
        await model.start()
        assert model.status().state == "ready", model.status().reason
        try:
            await work(Asker(model))
        finally:
            await model.close()

    asyncio.run(run())


def test_answers_depend_on_the_image_and_on_its_place(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        answers = [
            await asker.ask(user(picture(1), "what is it")),
            await asker.ask(user(picture(2), "what is it")),
            await asker.ask(user("what is it", picture(1))),
            await asker.ask(user(picture(1), picture(2), "what is it")),
            await asker.ask(user(picture(2), picture(1), "what is it")),
            await asker.ask(user("what is it")),
        ]
        assert len({text for (text,) in answers}) == len(answers)
        assert asker.model.card.vision

    with_model(tiny_model, projector, work)


def test_an_image_counts_as_prompt_and_is_seen_once(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        question = user("look", picture(CLEAR), "what is it")
        (answer,) = await asker.ask(question)
        assert (asker.usage.cached_tokens, asker.busyness.images_encoded) == (0, 1)
        assert asker.usage.prompt_tokens == await asker.tokens(question)
        assert asker.usage.prompt_tokens == await asker.tokens(user("look", "what is it")) + IMAGE_TOKENS - 1
        assert await asker.ask(question) == [answer]
        assert asker.usage.cached_tokens == asker.usage.prompt_tokens - 1
        await asker.ask(question, Message("assistant", answer), Message("user", "and now?"))
        assert asker.usage.cached_tokens >= IMAGE_TOKENS
        await asker.ask(user("another beginning", picture(CLEAR)))
        assert (asker.busyness.images_encoded, asker.busyness.images_reused) == (1, 1)
        await asker.ask(question, tenant="b")
        assert asker.usage.cached_tokens == 0
        assert asker.busyness.images_encoded == 2, "nothing is shared with another tenant"

    with_model(tiny_model, projector, work)


def test_choices_and_neighbours_are_answered_as_if_alone(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        questions = [user(picture(seed), "what is it") for seed in CLEAREST]
        alone = [(await asker.ask(question, tenant="alone", count=4))[0] for question in questions]
        together = await asyncio.gather(*[asker.ask(question, n=2, count=4) for question in questions])
        assert together == [[text, text] for text in alone]

    with_model(tiny_model, projector, work)


def test_images_are_seen_again_without_a_cache_of_embeddings(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        await asker.ask(user(picture(1), picture(2), "a"))
        await asker.ask(user("x", picture(1), picture(2), "a"))
        assert (asker.busyness.images_encoded, asker.busyness.image_cache_bytes) == (4, 0)

    with_model(tiny_model, projector, work, cache=0)


def test_images_that_do_not_fit_are_refused(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await asker.ask(user(*[picture(seed) for seed in range(8)]))
        assert caught.value.code == "context_length_exceeded"

    with_model(tiny_model, projector, work)


def test_bad_images_are_refused_by_their_part_and_the_worker_lives(tiny_model: Path, projector: Path) -> None:
    bad = {
        "truncated": png(64, 64)[:-30],
        "damaged": png(64, 64).replace(b"IDAT", b"IDAX"),
        "huge": png_of(60_000, 60_000, b""),
        "bomb": png_of(8, 8, zlib.compress(bytes(30_000_000))),
        "text": b"hello",
        "empty jpeg": b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xda\x00\x02\xff\xd9",
        "gif without an image": b"GIF89a\x02\x00\x02\x00\x00\x00\x00\x2c" + bytes(9) + b"\x02\x00;",
    }

    async def work(asker: Asker) -> None:
        pid = asker.model.status().pid
        for name, data in bad.items():
            with pytest.raises(InvalidRequest) as caught:
                await asker.ask(user("a", ImagePart(data, "image/png")))
            assert caught.value.param == "messages[0].content[1]", name
        assert await asker.ask(user(picture(1)))
        assert asker.model.status().pid == pid

    with_model(tiny_model, projector, work)


def test_a_marker_in_a_text_is_text(tiny_model: Path, projector: Path) -> None:
    async def work(asker: Asker) -> None:
        await asker.ask(user("<__media__> <image> [img-1]", picture(1)))
        assert asker.busyness.images_encoded == 1
        text, _ = await asker.model.apply_template(ChatRequest("m", (user("<__media__>", picture(1), "b"),)))
        assert "<__media__><image>b" in text

    with_model(tiny_model, projector, work)


def test_a_text_model_refuses_images_by_their_part(tiny_model: Path) -> None:
    async def work(asker: Asker) -> None:
        for messages in ((user("a", picture()),), (Message("user", "a"), user(picture()))):
            with pytest.raises(InvalidRequest, match="does not take images") as caught:
                await asker.ask(*messages)
            assert caught.value.param in ("messages[0].content[1]", "messages[1].content[0]")
            with pytest.raises(InvalidRequest, match="does not take images"):
                await asker.tokens(*messages)
        assert not asker.model.card.vision
        with pytest.raises(InvalidRequest, match="data: URLs"):
            await asker.ask(Message("user", (ImageUrl("https://example.com/a.png"),)))

    with_model(tiny_model, None, work)


@pytest.mark.parametrize("kind", ["missing", "truncated", "text model", "other width", "hunyuanvl", "unheard-of"])
def test_a_projector_that_cannot_be_used_is_said_so(
    kind: str, tiny_model: Path, projector: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mmproj.gguf"
    if kind == "truncated":
        random_gguf.truncate(projector, path, 5000)
    elif kind == "text model":
        path = tiny_model
    elif kind == "other width":
        random_vision.llava_projector(path, random_vision.VisionShape(text_width=96))
    elif kind in ("hunyuanvl", "unheard-of"):
        random_vision.llava_projector(path, random_vision.VisionShape(projector=kind))

    async def run() -> None:
        model = LlamaCpp("m", str(tiny_model), EngineSettings(threads=1, context_tokens=512, mmproj=str(path)))
        await model.start()
        for _ in range(1000):
            if model.status().state != "restarting":
                break
            await asyncio.sleep(0.01)
        with pytest.raises(Exception, match=r"mmproj|tiny") as caught:
            model.check_ready()
        assert getattr(caught.value, "code", "") == "model_invalid"
        await model.close()

    asyncio.run(run())


@pytest.mark.parametrize("flash", ["auto", "off"])
def test_a_projector_gives_way_while_it_encodes(tiny_model: Path, projector: Path, flash: str) -> None:
    quiet()
    pauses: list[int] = []
    model = Model(tiny_model, gpu_layers=0, progress=lambda fraction: None)
    eyes = Projector(projector, model, threads=1, gpu=False, pause=lambda: pauses.append(1), flash_attention=flash)
    assert not pauses, "loading is no encoding"
    (embeddings,) = eyes.encode(png(64, 64))
    assert embeddings.shape == (IMAGE_TOKENS, model.embedding_size)
    assert len(pauses) > 10
    with pytest.raises(ValueError, match="damaged"):
        eyes.pieces(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(NativeError, match="Failed to load CLIP"):
        Projector(tiny_model, model, threads=1, gpu=False, pause=lambda: None)


@pytest.fixture(scope="module")
def qwen2vl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose positions have two dimensions, and its projector."""
    folder = tmp_path_factory.mktemp("qwen2vl")
    model = random_gguf.qwen2vl_tiny(folder / "model.gguf")
    return model, random_vision.qwen2vl_projector(folder / "mmproj.gguf")


@pytest.mark.parametrize(("width", "height"), [(200, 150), (150, 400), (600, 100), (56, 56)])
def test_positions_of_two_dimensions_are_those_of_mtmd(qwen2vl: tuple[Path, Path], width: int, height: int) -> None:
    quiet()
    path, projector = qwen2vl
    model = Model(path, gpu_layers=0, progress=lambda fraction: None)
    eyes = Projector(projector, model, threads=1, gpu=False, pause=lambda: None)
    assert eyes.two_dimensional
    data = png(width, height)
    tokens, (span,) = Sight(eyes, b"", None).read(data, "a", 0)
    first = position(tokens, span.start)
    with eyes._chunks(data, placeholder=True) as chunks:
        (chunk,) = filter(vision._is_image, chunks)
        inner = mtmd_cpp.mtmd_input_chunk_get_tokens_image(chunk)
        expected = [mtmd_cpp.mtmd_image_tokens_get_decoder_pos(inner, first, at) for at in range(span.count)]
        taken = mtmd_cpp.mtmd_image_tokens_get_n_pos(inner)
    # llama.cpp takes them as time, row, column and one more.
    rows = [[one.t for one in expected], [one.y for one in expected], [one.x for one in expected], [0] * span.count]
    assert span.positions(first, 0, span.count).tolist() == rows
    assert span.positions(first, 3, 5).tolist() == [row[3:8] for row in rows]
    assert position(tokens, span.end) - first == taken


def test_a_model_with_positions_of_two_dimensions_goes_on_behind_its_images(qwen2vl: tuple[Path, Path]) -> None:
    async def work(asker: Asker) -> None:
        question = user("look", picture(1), picture(2), "what is it")
        (answer,) = await asker.ask(question)
        prompt = asker.usage.prompt_tokens
        assert await asker.ask(question, tenant="b") == [answer]
        assert len({answer, *await asker.ask(user("look", picture(2), picture(1), "what is it"))}) == 2
        await asker.ask(question, Message("assistant", answer), user("and this", picture(3)))
        assert asker.usage.cached_tokens >= prompt - 1

    with_model(*qwen2vl, work)


def test_fingerprints_tell_projectors_apart(projector: Path, tmp_path: Path) -> None:
    other = random_vision.llava_projector(tmp_path / "other.gguf", seed=2)
    assert vision.fingerprint(projector) == vision.fingerprint(projector)
    assert vision.fingerprint(projector) != vision.fingerprint(other)
