"""llama.cpp's mtmd library as one noun: a projector, which turns images into embeddings of a text model.

Beside `native.py` and `batch.py` the only module that touches ctypes. `pieces` is safe from any thread, `encode` is
for one thread at a time. Image files come here only after `pictures.check`.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as ll
import llama_cpp.mtmd_cpp as mtmd
import numpy as np

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.images import ImageTokens
from adapters.llama_cpp.native import FLASH_ATTENTION, Model, NativeError, complaints

FINGERPRINT_BLOCKS = 64
FINGERPRINT_BLOCK_BYTES = 1 << 16


class Projector:
    """A loaded projector file beside its text model.

    `pause` is called again and again during `encode`, between two matrix products, so that others can compute.
    `whole`: an image has to be computed in one batch, because its positions see each other.
    `two_dimensional`: each position of an image has a row and a column (M-RoPE).
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        *,
        threads: int,
        gpu: bool,
        pause: Callable[[], None],
        flash_attention: str = "auto",
    ) -> None:
        self._pause = pause
        self._encoding = False
        self._evaluated = ll.ggml_backend_sched_eval_callback(self._between)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = gpu
        params.n_threads = threads
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.print_timings = False
        params.cb_eval = self._evaluated
        with complaints(mtmd.mtmd_helper_log_set) as errors:
            context = mtmd.mtmd_init_from_file(str(path).encode(), model.pointer, params)
        if not context:
            reason = "; ".join(errors) or "no reason given"
            raise NativeError(f"llama.cpp cannot load this projector: {reason}")
        self._context = context
        self._width: int = ll.llama_model_n_embd_inp(model.pointer)
        self._options = mtmd.mtmd_helper_init_opt_default()
        # What is no image after all would be given to ffmpeg, as a video.
        self._options.video_params.ffmpeg_bin_dir = b"/dev/null"
        # Decoding takes memory for every pixel, so one image is decoded at a time.
        self._decoding = threading.Lock()
        self.sees = bool(mtmd.mtmd_support_vision(context))
        self.whole = bool(mtmd.mtmd_decode_use_non_causal(context, None))
        self.two_dimensional = bool(mtmd.mtmd_decode_use_mrope(context))

    def pieces(self, data: bytes) -> list[Int32s | ImageTokens]:
        """What an image becomes in a prompt: the text tokens around and between its parts, and the parts. Decodes the
        image to know that it can be decoded. Raises ValueError when it cannot."""
        with self._chunks(data, placeholder=True) as chunks:
            return [self._piece(chunk) for chunk in chunks]

    def encode(self, data: bytes) -> list[Float32s]:
        """The embeddings of each part of an image, shape (count, width)."""
        with self._chunks(data, placeholder=False) as chunks:
            return [self._encode_chunk(chunk) for chunk in chunks if _is_image(chunk)]

    def _piece(self, chunk: mtmd.mtmd_input_chunk_p) -> Int32s | ImageTokens:
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        if _is_image(chunk):
            image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
            return ImageTokens(count, mtmd.mtmd_image_tokens_get_nx(image) if self.two_dimensional else 0)
        size = ctypes.c_size_t()
        tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
        return np.ctypeslib.as_array(tokens, shape=(size.value,)).astype(np.int32)

    def _encode_chunk(self, chunk: mtmd.mtmd_input_chunk_p) -> Float32s:
        self._encoding = True
        try:
            code = mtmd.mtmd_encode_chunk(self._context, chunk)
        finally:
            self._encoding = False
        if code != 0:
            raise NativeError(f"llama.cpp failed to encode an image: {code}")
        rows = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape=(rows, self._width)).copy()

    def _between(self, tensor: object, asks: bool, user: object) -> bool:
        """mtmd computes up to each tensor that is asked for, then calls again. Every one is asked for; loading computes
        none."""
        if self._encoding and not asks:
            self._pause()
        return True

    @contextmanager
    def _chunks(self, data: bytes, *, placeholder: bool) -> Iterator[list[mtmd.mtmd_input_chunk_p]]:
        bitmap = self._bitmap(data, placeholder)
        chunks = mtmd.mtmd_input_chunks_init()
        assert chunks is not None
        try:
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            if mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False) != 0:
                raise ValueError("the model's image processor cannot take it")
            yield [mtmd.mtmd_input_chunks_get(chunks, at) for at in range(mtmd.mtmd_input_chunks_size(chunks))]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def _bitmap(self, data: bytes, placeholder: bool) -> mtmd.mtmd_bitmap_p:
        buffer = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
        with self._decoding:
            bitmap = mtmd.mtmd_helper_bitmap_init_from_buf(self._context, buffer, len(data), placeholder, self._options)
        if not bitmap:
            raise ValueError("its data is damaged")
        return bitmap


def _is_image(chunk: mtmd.mtmd_input_chunk_p) -> bool:
    return bool(mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)


def fingerprint(path: Path) -> bytes:
    """Tells projector files apart by their size and by samples spread evenly over them; reading gigabytes at every load
    would take longer than loading them."""
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for block in range(FINGERPRINT_BLOCKS):
            file.seek(size * block // FINGERPRINT_BLOCKS)
            digest.update(file.read(FINGERPRINT_BLOCK_BYTES))
    return digest.digest()
