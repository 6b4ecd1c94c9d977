"""llama.cpp as three nouns: a model, its vocabulary, a context. With `vision.py` the only module that touches ctypes.

llama.cpp aborts the process on some misuse, so each call here checks what the library asserts. One thread at a time may
use a `Context`; a `Vocabulary` is safe from any thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as ll
import numpy as np

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.batch import Batch, EmbeddingBatch
from adapters.llama_cpp.buffers import Buffers
from adapters.llama_cpp.kept import NEVER, State

KV_TYPES = {"f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0}
FLASH_ATTENTION = {
    "auto": ll.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": ll.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": ll.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
TOKEN_NULL = -1
UINT8_POINTER = ctypes.POINTER(ctypes.c_uint8)
ERROR_LEVEL = 4
COMPLAINTS_MAX = 5
# How llama.cpp begins to say what is wrong with a file, and not with this machine. None of it names the file's folder.
FAULTS = (
    "error loading model",
    "unknown model architecture",
    "check_tensor_dims",
    "missing tensor",
    "done_getting_tensors",
    "key ",
)


class NativeError(RuntimeError):
    """llama.cpp refused something that it should have done."""


class Unfit(NativeError):
    """It looked at a model file and found something wrong with it, so that another try cannot help."""


@ll.llama_log_callback  # type: ignore[untyped-decorator]
def discard(level: int, text: bytes, user: object) -> None:
    """Most of llama.cpp's chatter is of no use to an operator; errors come back as return values."""


def quiet() -> None:
    """Silences llama.cpp's logging for this process."""
    ll.llama_log_set(discard, ctypes.c_void_p(0))


@contextmanager
def complaints(log_set: Callable[[object, ctypes.c_void_p], None] = ll.llama_log_set) -> Iterator[list[str]]:
    """The errors that are logged meanwhile, which say why something is refused; all other chatter is dropped."""
    errors: list[str] = []

    def keep(level: int, text: bytes, user: object) -> None:
        if level == ERROR_LEVEL and len(errors) < COMPLAINTS_MAX:
            errors.append(text.decode("utf-8", "replace").strip())

    callback = ll.llama_log_callback(keep)
    log_set(callback, ctypes.c_void_p(0))
    try:
        yield errors
    finally:
        log_set(discard, ctypes.c_void_p(0))


def reason(errors: list[str]) -> str:
    """The first of what was logged, which is the cause of the rest."""
    return errors[0].partition("error loading model: ")[2] or errors[0] if errors else "no reason given"


def build() -> list[str | int]:
    """What identifies this llama.cpp as far as the layout of saved states goes."""
    return [llama_cpp.__version__, ll.llama_version().decode(), ll.LLAMA_STATE_SEQ_VERSION]


def cpu_features() -> tuple[str, ...]:
    """What llama.cpp makes use of in this CPU."""
    text = ll.llama_print_system_info().decode(errors="replace").partition(":")[2]
    return tuple(part.split("=")[0].strip() for part in text.split("|") if part.strip().endswith("= 1"))


class Backends:
    """The back ends that ggml was built with, and their devices; there are none where its library is not found."""

    def __init__(self) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        paths = [path for path in sorted(folder.glob("*ggml.*")) if path.suffix in (".so", ".dylib", ".dll")]
        self._ggml = ctypes.CDLL(str(paths[0])) if paths else None
        if self._ggml is None:
            return
        for name, result, *arguments in _GGML:
            function = getattr(self._ggml, name)
            function.restype, function.argtypes = result, arguments

    def names(self) -> tuple[str, ...]:
        """The back ends' names."""
        ggml = self._ggml
        if ggml is None:
            return ()
        found = [ggml.ggml_backend_reg_get(place) for place in range(ggml.ggml_backend_reg_count())]
        return tuple(ggml.ggml_backend_reg_name(one).decode(errors="replace") for one in found)

    def devices(self) -> list[tuple[str, str, int, int, int]]:
        """Name, description, ggml's number for its kind, free and total bytes of each."""
        ggml, found = self._ggml, []
        for place in range(0 if ggml is None else ggml.ggml_backend_dev_count()):
            assert ggml is not None
            device = ggml.ggml_backend_dev_get(place)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name, text = ggml.ggml_backend_dev_name(device), ggml.ggml_backend_dev_description(device)
            kind = ggml.ggml_backend_dev_type(device)
            found.append((name.decode(errors="replace"), text.decode(errors="replace"), kind, free.value, total.value))
        return found


# Functions of ggml, what they return, and what they take.
_SIZE_POINTER = ctypes.POINTER(ctypes.c_size_t)
_GGML: tuple[tuple[Any, ...], ...] = (
    ("ggml_backend_reg_count", ctypes.c_size_t),
    ("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t),
    ("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p),
    ("ggml_backend_dev_count", ctypes.c_size_t),
    ("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t),
    ("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p),
    ("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p),
    ("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p),
    ("ggml_backend_dev_memory", None, ctypes.c_void_p, _SIZE_POINTER, _SIZE_POINTER),
)


class Vocabulary:
    """Tokens to bytes and text to tokens."""

    def __init__(self, vocab: ll.llama_vocab_p) -> None:
        self._vocab = vocab
        self._pieces: dict[int, bytes] = {}
        self.size: int = ll.llama_vocab_n_tokens(vocab)
        self.bos: int = ll.llama_vocab_bos(vocab)
        self.eos: int = ll.llama_vocab_eos(vocab)
        self.sep: int = ll.llama_vocab_sep(vocab)
        self.adds_bos: bool = ll.llama_vocab_get_add_bos(vocab)
        self.adds_eos: bool = ll.llama_vocab_get_add_eos(vocab)
        self.adds_sep: bool = ll.llama_vocab_get_add_sep(vocab)
        self.fim = (ll.llama_vocab_fim_pre(vocab), ll.llama_vocab_fim_suf(vocab), ll.llama_vocab_fim_mid(vocab))
        self.end = frozenset(token for token in range(self.size) if ll.llama_vocab_is_eog(vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Int32s:
        """Token ids of `text`, shape (n,). Releases the GIL while it works."""
        raw = text.encode()
        tokens = np.empty(len(raw) + 8, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = ll.llama_tokenize(self._vocab, raw, len(raw), pointer, len(tokens), add_special, parse_special)
        if count < 0:
            raise NativeError(f"the tokeniser needs room for {-count} tokens, {len(tokens)} given")
        return tokens[:count].copy()

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for in output; empty for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.text(token, special=False)
        return piece

    def show(self, marker: str) -> None:
        """Lets the control tokens in `marker` appear in output, as markers of tool calls and thoughts must."""
        for token in self.tokenize(marker, add_special=False, parse_special=True).tolist():
            self._pieces[token] = self.piece(token) or self.text(token)

    def is_marker(self, token: int) -> bool:
        """Whether the token was added to the vocabulary by its makers, not learnt from text."""
        return bool(ll.llama_vocab_get_attr(self._vocab, token) & ll.LLAMA_TOKEN_ATTR_USER_DEFINED)

    def foreign(self) -> tuple[int, int]:
        """The addresses of the vocabulary and of `llama_tokenize`, for a library that tokenises by itself. The
        vocabulary lives as long as its model."""
        tokenize = ctypes.cast(ll._lib.llama_tokenize, ctypes.c_void_p).value
        assert tokenize is not None
        return int(self._vocab), tokenize

    def text(self, token: int, *, special: bool = True) -> bytes:
        """The bytes of a token; control tokens are spelt out when `special`."""
        if not 0 <= token < self.size:
            return b""
        buffer = ctypes.create_string_buffer(64)
        size = ll.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = ll.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:size]


class Model:
    """Weights of one GGUF file."""

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int,
        progress: Callable[[float], None],
        copied: bool = False,
        packed: bool = True,
    ) -> None:
        """`copied` weights are read into memory, others are mapped from the file where llama.cpp can do that; `packed`:
        in the order that is best for the processor. What `progress` raises ends the load and is raised here."""
        params = ll.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = packed
        params.load_mode = ll.LLAMA_LOAD_MODE_NONE if copied else ll.LLAMA_LOAD_MODE_AUTO

        stopped: list[Exception] = []

        def on_progress(fraction: float, user: object) -> bool:
            try:
                progress(fraction)
            except Exception as error:
                stopped.append(error)
            return not stopped

        self._progress = ll.llama_progress_callback(on_progress)
        params.progress_callback = self._progress
        with complaints() as errors:
            model = ll.llama_model_load_from_file(str(path).encode(), params)
        if stopped:
            raise stopped[0]
        if not model:
            why = reason(errors)
            kind = Unfit if why.startswith(FAULTS) and "alloc" not in why else NativeError
            raise kind(f"llama.cpp cannot load {path.name}: {why}")
        self.pointer = model
        self.loras: list[object] = []
        vocab = ll.llama_model_get_vocab(model)
        assert vocab is not None
        self.vocabulary = Vocabulary(vocab)
        self.context_train: int = ll.llama_model_n_ctx_train(model)
        self.embedding_size: int = ll.llama_model_n_embd(model)
        # Recurrent models have none.
        self.heads: int = max(1, ll.llama_model_n_head(model))
        self.parameters: int = ll.llama_model_n_params(model)
        self.size_bytes: int = ll.llama_model_size(model)
        # A recurrent state cannot be cut or copied in part; llama.cpp does so silently wrong when asked.
        self.partial_sequences = not (ll.llama_model_is_recurrent(model) or ll.llama_model_is_hybrid(model))

    def add_lora(self, path: Path) -> None:
        """Loads an adapter; all of them have to be there before a context is made, which sizes its graphs by them."""
        with complaints() as errors:
            lora = ll.llama_adapter_lora_init(self.pointer, str(path).encode())
        if not lora:
            raise NativeError(f"llama.cpp cannot load the adapter {path.name}: {reason(errors)}")
        self.loras.append(lora)

    @property
    def kv_bytes_per_token(self) -> int:
        """Size of one F16 cell; an upper bound, since it takes every layer for a full attention layer."""
        head_size = self.embedding_size // self.heads
        kv_heads: int = ll.llama_model_n_head_kv(self.pointer)
        layers: int = ll.llama_model_n_layer(self.pointer)
        return 2 * 2 * layers * kv_heads * int(head_size)

    def meta(self, key: str) -> str:
        """A metadata value as text, empty when absent."""
        buffer = ctypes.create_string_buffer(256)
        size = ll.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        if size >= len(buffer):
            buffer = ctypes.create_string_buffer(size + 1)
            size = ll.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    @property
    def description(self) -> str:
        """Architecture, size and quantisation in llama.cpp's words; no size where it has no name for it."""
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace").replace(" ?B", "")


class Context:
    """One `llama_context` with a unified KV pool: `slots` sequences share `cells` cells."""

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        slots: int,
        batch_tokens: int,
        outputs_max: int,
        threads: int,
        lease: AbstractContextManager[None],
        kv_type: str = "f16",
        flash_attention: str = "auto",
        embeddings: bool = False,
        buffers: Buffers | None = None,
    ) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_seq_max = slots
        params.n_outputs_max = batch_tokens if embeddings else outputs_max
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.kv_unified = True
        # A sliding window's own cache would have room for the windows of all sequences, which is about as much as all
        # cells: 41 windows of 1,024 tokens against a pool of 32,768. So a full one costs nothing, and can be cut.
        params.swa_full = True
        params.no_perf = True
        params.embeddings = embeddings
        # libc's strlen is the abort callback: an empty string says go on, a non-empty one says stop. A Python callback
        # would take the GIL once per graph node.
        self._abort = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ll.ggml_abort_callback)
        params.abort_callback = strlen
        params.abort_callback_data = ctypes.cast(self._abort, ctypes.c_void_p)
        with complaints() as errors:
            context = ll.llama_init_from_model(model.pointer, params)
        if not context:
            why = reason(errors)
            raise NativeError(f"llama.cpp cannot create a context: not enough memory for this cache_tokens? {why}")
        self._context = context
        self._strlen = strlen
        self._lease = lease
        self._memory = ll.llama_get_memory(context)
        self.vocabulary_size = model.vocabulary.size
        ranks = ll.llama_pooling_type(context) == ll.LLAMA_POOLING_TYPE_RANK
        self._embedding_size = ll.llama_model_n_cls_out(model.pointer) if ranks else model.embedding_size
        self._input_size: int = ll.llama_model_n_embd_inp(model.pointer)
        self._view: Float32s | None = None
        self._loras = model.loras
        self._adapted: tuple[tuple[int, float], ...] = ()
        self.cells: int = ll.llama_n_ctx(context)
        self.slots: int = ll.llama_n_seq_max(context)
        self.heads = model.heads
        self.threads = threads
        self.batch_tokens = batch_tokens
        self.outputs_max = outputs_max
        self.partial_sequences = model.partial_sequences
        self._window: int = ll.llama_model_n_swa(model.pointer)
        self.partial_states = model.partial_sequences and not self._window
        self.cell_bytes = model.kv_bytes_per_token
        self.copies = 0
        self._buffers = buffers or Buffers(0)
        self.pooling: int = ll.llama_pooling_type(context)

    def decode(self, batch: Batch) -> int:
        """Computes a batch. 0: done, 1: no room (earlier cells intact), 2: aborted (this batch undone)."""
        assert 0 < batch.size <= self.batch_tokens and batch.outputs <= self.outputs_max
        self._abort[0] = b"\0"
        with self._lease:
            code: int = ll.llama_decode(self._context, batch.native)
        if code < 0:
            raise NativeError(f"llama_decode failed with {code}")
        return code

    def adapt(self, scales: tuple[tuple[int, float], ...]) -> None:
        """Applies these of the model's adapters, each as (place, scale), and no others from the next decode on.

        After a change llama.cpp plans its graphs again: 1-3 ms.
        """
        if scales == self._adapted:
            return
        count = len(scales)
        loras = (ll.llama_adapter_lora_p_ctypes * count)(*(self._loras[place] for place, _ in scales))
        ll.llama_set_adapters_lora(
            self._context, loras, count, (ctypes.c_float * count)(*(scale for _, scale in scales))
        )
        self._adapted = scales

    def see(self, embeddings: Float32s, positions: Int32s, slot: int, *, output: bool, whole: bool) -> int:
        """Computes embeddings, shape (n, width), in place of tokens. `positions` has the shape (n,), or (4, n) where a
        position has dimensions; `whole` lets all n see each other. `output` asks for the last one's logits. The codes
        are those of `decode`."""
        batch = EmbeddingBatch(embeddings, positions, slot, output=output)
        assert 0 < len(embeddings) <= self.batch_tokens and embeddings.shape[1] == self._input_size
        self._abort[0] = b"\0"
        with self._lease:
            if whole:
                ll.llama_set_causal_attn(self._context, False)
            code: int = ll.llama_decode(self._context, batch.native)
            if whole:
                ll.llama_set_causal_attn(self._context, True)
        if code < 0:
            raise NativeError(f"llama_decode failed with {code} on an image")
        return code

    def encode(self, batch: Batch) -> None:
        """Computes embeddings of a batch, each sequence whole."""
        with self._lease:
            if self._memory is not None:
                ll.llama_memory_clear(self._memory, True)
                code = ll.llama_decode(self._context, batch.native)
            else:
                code = ll.llama_encode(self._context, batch.native)
        if code != 0:
            raise NativeError(f"llama.cpp failed to embed: {code}")

    def abort(self) -> None:
        """Makes a running `decode` return 2 soon. Safe from any thread."""
        self._abort[0] = b"x"

    def logits(self, rows: int) -> Float32s:
        """The last batch's output rows, shape (rows, vocabulary), valid until the next decode; may be overwritten."""
        pointer = ll.llama_get_logits(self._context)
        view = self._view
        address = ctypes.addressof(pointer.contents)
        if view is None or view.ctypes.data != address or view.shape[0] < rows:
            view = self._view = np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary_size))
        return view[:rows]

    def embedding(self, slot: int, last_row: int) -> Float32s:
        """The pooled vector of a sequence, or its last token's where the model does not pool; a reranker's holds its
        scores. Shape (n,)."""
        pointer = ll.llama_get_embeddings_seq(self._context, slot)
        if not pointer:
            pointer = ll.llama_get_embeddings_ith(self._context, last_row)
        if not pointer:
            raise NativeError("llama.cpp returned no embedding")
        return np.ctypeslib.as_array(pointer, shape=(self._embedding_size,)).copy()

    def remove(self, slot: int, start: int = 0) -> bool:
        """Drops the cells of a sequence from position `start` on; False where the model cannot forget a part."""
        return bool(ll.llama_memory_seq_rm(self._memory, slot, start, -1))

    def share(self, source: int, target: int, end: int) -> None:
        """Gives `target` the cells of `source` at positions [0, end) without copying them."""
        ll.llama_memory_seq_cp(self._memory, source, target, 0, end if self.partial_sequences else -1)

    def cut_min(self, slot: int) -> int:
        """The fewest tokens that a sequence can be cut to. Cells behind a sliding window are not saved, and may be
        overwritten where nothing shares them; what is left is without gaps."""
        if not self.partial_sequences:
            return NEVER
        first: int = ll.llama_memory_seq_pos_min(self._memory, slot) if self._window else 0
        return first + self._window if first > 0 else 0

    def save(self, slot: int) -> State:
        """The state of one sequence, shape (bytes,)."""
        self.copies += 1
        return self._save(slot, 0)

    def restore(self, slot: int, state: State) -> bool:
        """Loads a saved state into an empty sequence; False when it does not fit, leaving the sequence empty."""
        self.copies += 1
        return self._restore(slot, state, 0)

    def save_partial(self, slot: int) -> State:
        """Of one sequence what `remove` cannot take back to its present end, shape (bytes,)."""
        return self._save(slot, ll.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def restore_partial(self, slot: int, state: State) -> bool:
        """Puts what `save_partial` gave into a sequence that was continued since; `remove` cuts the rest then."""
        return self._restore(slot, state, ll.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def _save(self, slot: int, flags: int) -> State:
        size = ll.llama_state_seq_get_size_ext(self._context, slot, flags)
        state = self._buffers.take(size)
        written = ll.llama_state_seq_get_data_ext(self._context, state.ctypes.data_as(UINT8_POINTER), size, slot, flags)
        if written != size:
            raise NativeError(f"a sequence state of {size} bytes came out as {written}")
        return state

    def _restore(self, slot: int, state: State, flags: int) -> bool:
        size = len(state)
        read = ll.llama_state_seq_set_data_ext(self._context, state.ctypes.data_as(UINT8_POINTER), size, slot, flags)
        return bool(size and read == size)
