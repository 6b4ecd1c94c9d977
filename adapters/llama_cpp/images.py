"""Images inside of prompts: where they stand, what stands for them among the tokens, and when they become embeddings.

Each position of an image has a negative number in place of a token id. It is drawn from a hash of the image, so equal
images match as equal text does when prefixes are compared. Its two lowest bits say whether the position is the last of
its image, since a prefix may end there only, and whether it counts as a position, since models with two-dimensional
positions number a whole image with as many as its longer side has.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import msgspec
import numpy as np

from adapters.llama_cpp import pictures
from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.types import ImagePart, Message, TextPart

SLICE_S = 0.05
LEASE_REST_S = 0.0005
_LAST, _COUNTS = 1, 2


class Image:
    """An image of one request: its file, the hash that stands for it, and the embeddings of its parts while they are
    needed."""

    __slots__ = ("data", "failed", "identity", "parts")

    def __init__(self, data: bytes, identity: bytes) -> None:
        self.data = data
        self.identity = identity
        self.parts: tuple[Float32s, ...] | None = None
        self.failed = False


class Span(msgspec.Struct, frozen=True):
    """`count` positions of a prompt from `start` on that the `part`-th part of an image fills; `columns` is 0 where
    positions have one dimension."""

    start: int
    count: int
    columns: int
    image: Image
    part: int

    @property
    def end(self) -> int:
        return self.start + self.count

    def tokens(self) -> Int32s:
        """What stands for these positions, shape (count,)."""
        shape = b"%d %d %d" % (self.part, self.count, self.columns)
        raw = np.frombuffer(hashlib.shake_256(self.image.identity + shape).digest(4 * self.count), "<u4")
        bits = (raw >> 3 << 2).astype(np.int64)
        positions = self.count if not self.columns else max(self.columns, -(-self.count // self.columns))
        bits[:positions] |= _COUNTS
        bits[-1] |= _LAST
        return (-1 - bits).astype(np.int32)

    def positions(self, first: int, done: int, count: int) -> Int32s:
        """The positions of `count` embeddings after `done`, the span beginning at position `first`. Shape (count,), or
        (4, count) for time, row, column and an unused one."""
        index = np.arange(done, done + count, dtype=np.int32)
        if not self.columns:
            return first + index
        zeros = np.zeros(count, np.int32)
        return np.stack([zeros + first, first + index // self.columns, first + index % self.columns, zeros])


def position(tokens: Int32s, size: int) -> int:
    """How many positions `tokens[:size]` take."""
    head = tokens[:size]
    return size - int(np.count_nonzero((head < 0) & (~head & _COUNTS == 0)))


def whole(tokens: Int32s, size: int) -> int:
    """The longest prefix of at most `size` tokens that does not end inside of an image."""
    if not size or tokens[size - 1] >= 0:
        return size
    head = tokens[:size]
    ends = np.flatnonzero((head >= 0) | (~head & _LAST != 0))
    return int(ends[-1]) + 1 if len(ends) else 0


class ImageTokens(msgspec.Struct, frozen=True):
    """A run of positions that embeddings will fill: `count` of them, in rows of `columns` where positions have two
    dimensions, else 0."""

    count: int
    columns: int


class Processor(Protocol):
    """What reading images needs of a projector. Raises ValueError for what it cannot take."""

    def pieces(self, data: bytes) -> list[Int32s | ImageTokens]: ...


class Sight:
    """Turns image files into what stands for them in a prompt. Safe from any thread.

    `identity` tells projectors apart; `tokens_max` bounds one part of an image (None: any size can be computed).
    """

    def __init__(self, processor: Processor, identity: bytes, tokens_max: int | None) -> None:
        self._processor = processor
        self._identity = identity
        self._tokens_max = tokens_max

    def read(self, data: bytes, tenant: str, start: int) -> tuple[Int32s, list[Span]]:
        """The tokens of an image at `start`, with the text tokens that the model wants around it, and the spans of its
        parts. Nothing of it is shared with another tenant. Raises ValueError when it cannot be taken."""
        pictures.check(data)
        secret = hashlib.sha256(self._identity + hashlib.sha256(tenant.encode()).digest() + data).digest()
        image, runs, spans = Image(data, secret), list[Int32s](), list[Span]()
        for piece in self._processor.pieces(data):
            if isinstance(piece, ImageTokens):
                if self._tokens_max is not None and piece.count > self._tokens_max:
                    raise ValueError(f"it needs {piece.count} tokens at once, at most {self._tokens_max} are possible")
                spans.append(Span(start, piece.count, piece.columns, image, len(spans)))
                runs.append(spans[-1].tokens())
            else:
                runs.append(piece)
            start += len(runs[-1])
        return np.concatenate(runs), spans


class Shown(msgspec.Struct, frozen=True):
    """An image of a conversation, the field it came in, and the text that holds its place while a template is
    rendered. Nobody can guess that text."""

    part: ImagePart
    param: str
    marker: str


def shown(messages: tuple[Message, ...]) -> list[Shown]:
    """The images of a conversation in order."""
    secret = secrets.token_hex(16)
    found: list[Shown] = []
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if isinstance(part, ImagePart):
                found.append(Shown(part, f"messages[{i}].content[{j}]", f"[image {secret} {len(found)}]"))
    return found


def marked(messages: tuple[Message, ...], images: Sequence[Shown]) -> tuple[Message, ...]:
    """The conversation with each image replaced by its marker. As llama.cpp does it, texts are joined by line ends, and
    nothing comes between a text and an image."""
    markers = iter(images)

    def text(message: Message) -> str | None:
        if not isinstance(message.content, tuple):
            return message.content
        joined, after_text = "", False
        for part in message.content:
            if isinstance(part, TextPart):
                joined += ("\n" if after_text else "") + part.text
            elif isinstance(part, ImagePart):
                joined += next(markers).marker
            after_text = isinstance(part, TextPart)
        return joined

    return tuple(msgspec.structs.replace(message, content=text(message)) for message in messages)


def split(text: str, images: list[Shown]) -> list[str] | None:
    """The rendered prompt before, between and after its images; None when the template lost, moved or repeated one."""
    pattern = "|".join(re.escape(image.marker) for image in images)
    if re.findall(pattern, text) != [image.marker for image in images]:
        return None
    return re.split(pattern, text)


class Turns(AbstractContextManager[None]):
    """Lets the decode thread and the encoder compute in turns, since threads in excess of the cores cost more than
    waiting. Entered by the decode thread for each step; `encoding` is the encoder's side, which gives way between two
    matrix products once it has had its slice."""

    def __init__(self, lease: AbstractContextManager[None], *, shared: bool) -> None:
        self._lease = lease
        # Whether other processes may wait for the lease, which nobody can tell from here.
        self._shared = shared
        self._free = threading.Condition()
        self._busy = False
        self._wanted = False
        self._since_s = 0.0

    def __enter__(self) -> None:
        with self._free:
            self._wanted = True
            self._free.wait_for(lambda: not self._busy)
            self._wanted, self._busy = False, True
        self._lease.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lease.__exit__(None, None, None)
        with self._free:
            self._busy = False
            self._free.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        self._enter_second()
        try:
            yield
        finally:
            self.__exit__()

    def pause(self) -> None:
        if time.monotonic() - self._since_s < SLICE_S or not (self._wanted or self._shared):
            return
        self.__exit__()
        if self._shared:
            time.sleep(LEASE_REST_S)
        self._enter_second()

    def _enter_second(self) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._busy and not self._wanted)
            self._busy = True
        self._lease.__enter__()
        self._since_s = time.monotonic()


class Encoder:
    """Makes embeddings of images on a thread of its own and remembers the latest ones, up to a number of bytes.

    `encode` is called on that thread; `wake` tells the decode thread that an image is ready or has failed.
    """

    def __init__(self, encode: Callable[[bytes], list[Float32s]], *, bytes_max: int, wake: Callable[[], None]) -> None:
        self._encode = encode
        self._bytes_max = bytes_max
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[Float32s, ...]] = OrderedDict()
        self._wanting: dict[bytes, set[Image]] = {}
        self.encoded = 0
        self.reused = 0
        self.bytes = 0

    def want(self, image: Image) -> None:
        """Gives an image its embeddings, now or later. Asking again changes nothing."""
        with self._lock:
            if image.parts is not None or image.failed:
                return
            kept = self._kept.get(image.identity)
            if kept is not None:
                self._kept.move_to_end(image.identity)
                image.parts = kept
                self.reused += 1
            elif image.identity not in self._wanting:
                self._wanting[image.identity] = {image}
                self._thread.submit(self._work, image.identity, image.data)
            elif image not in self._wanting[image.identity]:
                self._wanting[image.identity].add(image)
                self.reused += 1

    def forget(self, image: Image) -> None:
        """The image is no longer needed; one that nobody else wants is not encoded."""
        with self._lock:
            image.parts = None
            self._wanting.get(image.identity, set()).discard(image)

    def _work(self, identity: bytes, data: bytes) -> None:
        parts: tuple[Float32s, ...] | None = None
        with self._lock:
            if not self._wanting[identity]:
                del self._wanting[identity]
                return
        try:
            parts = tuple(self._encode(data))
        except Exception as error:
            # Whoever waits must hear of it, whatever it was.
            print(f"an image could not be encoded: {type(error).__name__}: {error}", file=sys.stderr)
        with self._lock:
            for image in self._wanting.pop(identity):
                image.parts, image.failed = parts, parts is None
            if parts is not None:
                self.encoded += 1
                self._keep(identity, parts)
        self._wake()

    def _keep(self, identity: bytes, parts: tuple[Float32s, ...]) -> None:
        self._kept[identity] = parts
        self.bytes += sum(part.nbytes for part in parts)
        while self.bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= sum(part.nbytes for part in oldest)
