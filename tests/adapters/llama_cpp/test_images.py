"""Images as tokens, as text in a template, and as embeddings that are made meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

from adapters.llama_cpp import images
from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.images import Encoder, Image, ImageTokens, Sight, Span, Turns
from adapters.llama_cpp.kept import common_prefix
from adapters.types import ImagePart, Message, TextPart
from tests.models.random_vision import png


def span(name: str = "a", count: int = 6, columns: int = 0) -> Span:
    return Span(0, count, columns, Image(b"", name.encode()), 0)


def ints(*values: int) -> Int32s:
    return np.array(values, np.int32)


def test_equal_images_have_equal_tokens_and_others_differ_at_once() -> None:
    tokens = span().tokens()
    assert (tokens < 0).all() and tokens.tolist() == span().tokens().tolist()
    others = [span("b"), span(count=7), span(columns=3), Span(0, 6, 0, Image(b"", b"a"), 1)]
    assert all(other.tokens()[0] != tokens[0] for other in others)


def test_a_common_prefix_does_not_end_inside_of_an_image() -> None:
    image = span().tokens()
    prompt = np.concatenate([ints(5, 6), image, ints(7, 8), image])
    assert [images.whole(prompt, size) for size in range(len(prompt) + 1)] == [
        *(0, 1, 2, 2, 2, 2, 2, 2),
        *(8, 9, 10, 10, 10, 10, 10, 10),
        16,
    ]
    assert common_prefix(prompt, prompt[:-1]) == 10
    assert common_prefix(image, image[:-1]) == 0
    assert common_prefix(prompt, prompt) == len(prompt)


def test_positions_count_every_token_but_those_of_a_grid() -> None:
    flat = np.concatenate([ints(1), span(count=6).tokens(), ints(2)])
    assert [images.position(flat, size) for size in (0, 1, 7, 8)] == [0, 1, 7, 8]
    wide, high = span(count=6, columns=3).tokens(), span(count=6, columns=2).tokens()
    assert images.position(wide, 6) == images.position(high, 6) == 3
    assert images.position(np.concatenate([wide, ints(2)]), 7) == 4


def test_positions_of_a_grid_are_time_row_column() -> None:
    assert span(count=6, columns=3).positions(10, 2, 3).tolist() == [[10] * 3, [10, 11, 11], [12, 10, 11], [0] * 3]
    assert span(count=6).positions(10, 2, 3).tolist() == [12, 13, 14]


def conversation(text: str = "a") -> tuple[Message, ...]:
    picture = ImagePart(b"1", "image/png")
    return (
        Message("system", "be brief"),
        Message("user", (TextPart(text), TextPart("b"), picture, TextPart("c"), picture)),
        Message("user", (picture,)),
    )


def test_markers_hold_the_place_of_images() -> None:
    shown = images.shown(conversation())
    assert [one.param for one in shown] == [
        "messages[1].content[2]",
        "messages[1].content[4]",
        "messages[2].content[0]",
    ]
    marked = images.marked(conversation(), shown)
    first, second, third = (one.marker for one in shown)
    assert [message.content for message in marked] == ["be brief", f"a\nb{first}c{second}", third]
    rendered = "|".join(message.text for message in marked)
    assert images.split(rendered, shown) == ["be brief|a\nb", "c", "|", ""]


@pytest.mark.parametrize("damage", ["lost", "twice", "swapped"])
def test_a_template_that_does_not_keep_images_is_noticed(damage: str) -> None:
    shown = images.shown(conversation())
    markers = [one.marker for one in shown]
    orders = {"lost": markers[1:], "twice": [*markers, markers[0]], "swapped": markers[::-1]}
    assert images.split(" ".join(orders[damage]), shown) is None


def test_text_that_looks_like_a_marker_is_text() -> None:
    guess = images.shown(conversation())[0].marker
    shown = images.shown(conversation(guess))
    marked = images.marked(conversation(guess), shown)
    texts = images.split("".join(message.text for message in marked), shown)
    assert texts is not None and guess in texts[0]


class FakeProcessor:
    def pieces(self, data: bytes) -> list[Int32s | ImageTokens]:
        return [ints(1), ImageTokens(4, 0), ints(2), ImageTokens(3, 0)]


def test_an_image_becomes_the_tokens_around_it_and_the_spans_of_its_parts() -> None:
    tokens, spans = Sight(FakeProcessor(), b"p", None).read(png(4, 4), "a", 10)
    assert [(one.start, one.count, one.part) for one in spans] == [(11, 4, 0), (16, 3, 1)]
    assert (tokens < 0).tolist() == [False, *[True] * 4, False, *[True] * 3]


def test_images_are_told_apart_by_projector_and_tenant() -> None:
    def identity(projector: bytes, tenant: str) -> bytes:
        return Sight(FakeProcessor(), projector, None).read(png(4, 4), tenant, 0)[1][0].image.identity

    assert len({identity(b"p", "a"), identity(b"p", "b"), identity(b"q", "a")}) == 3
    assert identity(b"p", "a") == identity(b"p", "a")


def test_an_image_that_needs_too_many_tokens_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 tokens at once, at most 3"):
        Sight(FakeProcessor(), b"p", 3).read(png(4, 4), "a", 0)


class Oven:
    """Encodes when it is told to. Embeddings are eight bytes."""

    def __init__(self, bytes_max: int = 100) -> None:
        self.started: queue.Queue[bytes] = queue.Queue()
        self.allowed: queue.Queue[Exception | None] = queue.Queue()
        self.woken = threading.Semaphore(0)
        self.encoder = Encoder(self._encode, bytes_max=bytes_max, wake=self.woken.release)

    def _encode(self, data: bytes) -> list[np.ndarray]:
        self.started.put(data)
        failure = self.allowed.get()
        if failure is not None:
            raise failure
        return [np.zeros((1, 2), np.float32)]

    def finish(self, failure: Exception | None = None) -> None:
        self.allowed.put(failure)
        assert self.woken.acquire(timeout=10)


def test_an_image_is_encoded_once_for_all_who_want_it() -> None:
    oven = Oven()
    first, second, later = (Image(b"x", b"1") for _ in range(3))
    for image in (first, first, second):
        oven.encoder.want(image)
    oven.finish()
    oven.encoder.want(later)
    assert first.parts is not None and first.parts is second.parts is later.parts
    assert (oven.encoder.encoded, oven.encoder.reused, oven.encoder.bytes) == (1, 2, 8)


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    oven = Oven(bytes_max=16)
    for name in (b"1", b"2", b"3"):
        oven.encoder.want(Image(name, name))
        oven.finish()
    assert oven.encoder.bytes == 16
    oldest = Image(b"1", b"1")
    oven.encoder.want(oldest)
    assert oldest.parts is None
    oven.finish()


def test_without_a_cache_an_image_still_gets_its_embeddings() -> None:
    oven = Oven(bytes_max=0)
    image = Image(b"x", b"1")
    oven.encoder.want(image)
    oven.finish()
    assert image.parts is not None and oven.encoder.bytes == 0


def test_an_image_whose_embeddings_have_just_come_is_not_encoded_again() -> None:
    oven, come = Oven(bytes_max=0), list[Callable[[], None]]()

    class LateLock(AbstractContextManager[None]):
        """Somebody else has it first."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            if threading.current_thread() is threading.main_thread() and come:
                come.pop()()
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    oven.encoder._lock = LateLock()  # type: ignore[assignment]
    image = Image(b"x", b"1")
    oven.encoder.want(image)
    come.append(oven.finish)
    oven.encoder.want(image)
    oven.allowed.put(None)
    oven.encoder._thread.shutdown()
    assert oven.encoder.encoded == 1


def test_a_failure_is_told_to_all_who_wait(capsys: pytest.CaptureFixture[str]) -> None:
    oven = Oven()
    image = Image(b"x", b"1")
    oven.encoder.want(image)
    oven.finish(RuntimeError("no memory"))
    assert image.failed and image.parts is None
    assert "no memory" in capsys.readouterr().err


def test_what_nobody_wants_any_more_is_not_encoded() -> None:
    oven = Oven()
    busy, given_up, wanted = Image(b"1", b"1"), Image(b"2", b"2"), Image(b"3", b"3")
    for image in (busy, given_up, wanted):
        oven.encoder.want(image)
    oven.encoder.forget(given_up)
    oven.finish()
    oven.finish()
    assert [oven.started.get_nowait() for _ in range(2)] == [b"1", b"3"]


def test_the_decode_thread_goes_first_and_alone() -> None:
    turns, order = Turns(nullcontext(), shared=False), list[str]()
    encoding, stepping = threading.Event(), threading.Event()

    def encode() -> None:
        with turns.encoding():
            encoding.set()
            stepping.wait(10)
            while "step" not in order:
                turns.pause()
            order.append("encoded")

    thread = threading.Thread(target=encode)
    thread.start()
    encoding.wait(10)
    stepping.set()
    with turns:
        order.append("step")
    thread.join(10)
    assert order == ["step", "encoded"]
