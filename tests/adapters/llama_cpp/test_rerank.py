"""Scores of rerankers against what the weights say when they are multiplied out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader

from adapters.llama_cpp import gguf
from adapters.llama_cpp.embedder import Job
from adapters.llama_cpp.loading import Loaded, load
from adapters.llama_cpp.messages import EngineSettings, Load, Reranked
from tests.models import random_gguf

Floats = npt.NDArray[np.float64]

QUERY = "What is the capital of France?"
DOCUMENTS = ("Paris is the capital.", "two words", "London people say the weather is good today and every day", "x", "")


def loaded(path: Path, context_tokens: int | None = None) -> Loaded:
    settings = EngineSettings(threads=1, context_tokens=context_tokens)
    return load(Load(str(path), settings), lambda fraction: None, nullcontext())


def scores(model: Loaded, query: str, documents: Sequence[str]) -> list[float]:
    assert model.embedder is not None and model.scheduler is None
    model.embedder.submit(Job(1, model.prompts.pairs(query, documents)))
    (done,) = model.embedder.step()
    assert isinstance(done, Reranked)
    return list(done.scores)


class Bert:
    """A BERT cross-encoder in numpy: Devlin et al., 2018, with the pooler and classifier of transformers."""

    def __init__(self, path: Path, heads: int, layers: int) -> None:
        self.weights = {
            tensor.name: tensor.data.reshape([*reversed(tensor.shape.tolist())]).astype(np.float64)
            for tensor in GGUFReader(path).tensors
        }
        self.heads = heads
        self.layers = layers

    def score(self, tokens: npt.NDArray[np.int32]) -> float:
        weights = self.weights
        x = weights["token_embd.weight"][tokens] + weights["token_types.weight"][0]
        x = self.norm(x + weights["position_embd.weight"][: len(tokens)], "token_embd_norm")
        for layer in range(self.layers):
            block = f"blk.{layer}."
            x = self.norm(x + self.attention(x, block), block + "attn_output_norm")
            wide = self.linear(x, block + "ffn_up")
            wide = 0.5 * wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
            x = self.norm(x + self.linear(wide, block + "ffn_down"), block + "layer_output_norm")
        return float(self.linear(np.tanh(self.linear(x[0], "cls")), "cls.output")[0])

    def linear(self, x: Floats, name: str) -> Floats:
        return np.asarray(x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"])

    def norm(self, x: Floats, name: str) -> Floats:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self.weights[name + ".weight"] + self.weights[name + ".bias"])

    def attention(self, x: Floats, block: str) -> Floats:
        q, k, v = (
            self.linear(x, f"{block}attn_{name}").reshape(len(x), self.heads, -1).swapaxes(0, 1) for name in "qkv"
        )
        fit = q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
        share = np.exp(fit - fit.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True)) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), block + "attn_output")


def test_a_cross_encoder_scores_as_its_weights_say(tmp_path: Path) -> None:
    path = random_gguf.bert_reranker(tmp_path / "reranker.gguf")
    model = loaded(path)
    assert (model.info.reranks, model.info.embeds, model.info.generates) == ("logit", False, False)
    wanted = [
        Bert(path, random_gguf.BERT_TINY.heads, random_gguf.BERT_TINY.layers).score(tokens)
        for tokens in model.prompts.pairs(QUERY, DOCUMENTS)
    ]
    assert max(wanted) - min(wanted) > 0.1
    assert scores(model, QUERY, DOCUMENTS) == pytest.approx(wanted, abs=0.01)


def test_a_pair_stands_between_the_marks_of_its_tokeniser(tmp_path: Path) -> None:
    model = loaded(random_gguf.bert_reranker(tmp_path / "reranker.gguf"))
    (pair,) = model.prompts.pairs("the capital", ["of France"])
    assert model.prompts.text(tuple(pair.tolist())) == "[CLS] the capital[SEP] of france[SEP]"


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_a_score_depends_on_its_own_pair_alone(tmp_path: Path, kind: str) -> None:
    make = random_gguf.bert_reranker if kind == "bert" else random_gguf.decoder_reranker
    model = loaded(make(tmp_path / "reranker.gguf"), 512)
    together = scores(model, QUERY, DOCUMENTS)
    alone = [scores(model, QUERY, [document])[0] for document in DOCUMENTS]
    assert together == pytest.approx(alone, abs=0.05) and len({round(score, 4) for score in together}) > 3
    if kind == "qwen3":
        assert model.info.reranks == "probability" and all(0 <= score <= 1 for score in together)


def test_a_template_is_filled_once_and_not_by_what_it_is_filled_with(tmp_path: Path) -> None:
    path = random_gguf.decoder_reranker(tmp_path / "reranker.gguf")
    assert gguf.reranks(gguf.read(path)) and not gguf.embeds(gguf.read(path))
    model = loaded(path, 512)
    (pair,) = model.prompts.pairs("say {document} and {query}", ["hello"])
    text = model.prompts.text(tuple(pair.tolist()))
    assert "<Query>: say {document} and {query}\n<Document>: hello<|im_end|>" in text
