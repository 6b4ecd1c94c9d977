"""Generated models are deterministic, load in llama.cpp, tokenise, and talk without stopping."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from gguf import GGUFReader
from llama_cpp import Llama

from tests.models import random_gguf
from tests.models.vocabularies import CHATML, CONTROL_TOKENS, byte_level_bpe, from_gguf, word_piece

TEXT = "Hello, what is the capital of France? é 你好 😀 123\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf.llama_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


def open_model(path: Path, *, embedding: bool = False) -> Llama:
    return Llama(str(path), n_ctx=512, n_threads=1, verbose=False, embedding=embedding)


def greedy(model: Llama, prompt: str, count: int) -> list[int]:
    model.reset()
    stream = model.generate(model.tokenize(prompt.encode(), special=True), temp=0.0)
    return [token for token, _ in zip(stream, range(count), strict=False)]


def test_equal_seeds_give_equal_bytes(tiny: Path, tmp_path: Path) -> None:
    again = random_gguf.llama_tiny(tmp_path / "again.gguf")
    other = random_gguf.llama_tiny(tmp_path / "other.gguf", seed=2)
    assert again.read_bytes() == tiny.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gguf", "other.gguf"]


def test_tiny_tokenises_and_generates_varied_text(tiny: Path) -> None:
    model = open_model(tiny)
    tokens = model.tokenize(TEXT.encode(), add_bos=False)
    assert model.detokenize(tokens) == TEXT.encode()
    assert len(tokens) < len(TEXT.encode()) * 0.7
    special = len(from_gguf(tiny)) - len(CONTROL_TOKENS)
    outputs = [greedy(model, prompt, 128) for prompt in ("Hello", "Paris is", "<|im_start|>user\nhi<|im_end|>\n")]
    for output in outputs:
        assert len(output) == 128 and len(set(output)) > 64
        assert max(output) < special
        model.detokenize(output).decode()
    assert outputs[0] != outputs[1]
    assert greedy(model, "Hello", 128) == outputs[0]


def test_chat_template_and_special_tokens_are_found(tiny: Path) -> None:
    model = open_model(tiny)
    assert model.metadata["tokenizer.chat_template"] == CHATML
    assert len(model.tokenize(b"<|im_start|><|im_end|>", add_bos=False, special=True)) == 2
    assert model.detokenize([model.token_eos()], special=True) == b"<|im_end|>"


def test_raw_bytes_are_generated_on_request(tmp_path: Path) -> None:
    model = open_model(random_gguf.llama_tiny(tmp_path / "raw.gguf", raw_bytes=True))
    with pytest.raises(UnicodeDecodeError):
        model.detokenize(greedy(model, "Hello world", 128)).decode()


def test_qwen2_layout_loads_in_q4_0(tmp_path: Path) -> None:
    shape = msgspec.structs.replace(
        random_gguf.QWEN2_05B, layers=2, width=128, heads=2, kv_heads=1, feed_forward=256, context=512
    )
    model = open_model(random_gguf.write_decoder(tmp_path / "qwen2.gguf", shape, byte_level_bpe(700), seed=1))
    assert len(set(greedy(model, "the weather", 32))) > 16


@pytest.mark.parametrize("size", [600, 1024, 32_000])
def test_byte_level_bpe_has_the_asked_size_and_no_token_twice(size: int) -> None:
    vocab = byte_level_bpe(size)
    assert len(vocab) == len(set(vocab.tokens)) == len(vocab.token_types) == size


def test_a_vocabulary_is_read_back_from_a_file(tiny: Path, tmp_path: Path) -> None:
    assert from_gguf(tiny) == byte_level_bpe(1024)
    assert from_gguf(random_gguf.bert_embedder(tmp_path / "bert.gguf")) == word_piece()


def test_bert_gives_closer_embeddings_to_texts_that_share_words(tmp_path: Path) -> None:
    model = open_model(random_gguf.bert_embedder(tmp_path / "bert.gguf"), embedding=True)
    texts = ["the capital of France is Paris", "what is the capital of France", "my little line goes long way"]
    one, two, three = (np.array(model.embed(text, normalize=True)) for text in texts)
    assert one.shape == (random_gguf.BERT_TINY.width,)
    assert one @ two > 0.7 > one @ three


def test_decoder_embedder_gives_embeddings(tmp_path: Path) -> None:
    model = open_model(random_gguf.decoder_embedder(tmp_path / "embedder.gguf"), embedding=True)
    one, two = (np.array(model.embed(text, normalize=True)) for text in ("the capital", "a river"))
    assert one.shape == (random_gguf.LLAMA_TINY.width,) and abs(one @ two) < 0.9


def test_corrupt_variants(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "corrupt.gguf"
    assert random_gguf.truncate(tiny, out, 1000).read_bytes() == tiny.read_bytes()[:1000]
    random_gguf.overwrite(tiny, out, 0, b"XXXX")
    assert out.read_bytes() == b"XXXX" + tiny.read_bytes()[4:]
    name = "blk.0.attn_q.weight"
    offset = next(tensor for tensor in GGUFReader(tiny).tensors if tensor.name == name).data_offset
    random_gguf.misplace_tensor(tiny, out, name, 0)
    moved = next(tensor for tensor in GGUFReader(out).tensors if tensor.name == name).data_offset
    assert moved < offset and out.stat().st_size == tiny.stat().st_size
