"""The training of the demo model: batches of synthetic text, the optimisers, and a run that can be resumed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from adapters.llama_cpp.demo.corpus import Document, documents
from adapters.llama_cpp.demo.export import export_gguf
from adapters.llama_cpp.demo.model import Network, Shape
from adapters.llama_cpp.demo.vocabulary import train_tokenizer

VOCAB_TARGET = 2048
LENGTH_MAX = 1024
TOKENS_PER_STEP = 5000
TOKENS_PER_BATCH = 2600
POOL_DOCUMENTS = 4000
TOKENIZER_DOCUMENTS = 12000
WARMUP_SHARE = 0.02
MUON_LR, ADAM_LR = 0.02, 0.003


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of a document and the mask of those that are learnt, both `(length,)`."""

    tokens: np.ndarray
    learn: np.ndarray


def encode(tokenizer: Tokenizer, document: Document) -> Sample:
    """Tokenise piece by piece; pieces begin and end at special tokens, so the borders are those of the whole text."""
    ids: list[int] = []
    learn: list[bool] = []
    for piece in document:
        part = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += part
        learn += [piece.learn] * len(part)
    return Sample(np.array(ids[:LENGTH_MAX], np.int64), np.array(learn[:LENGTH_MAX], bool))


def encode_pool(task: tuple[str, int]) -> list[Sample]:
    """The samples of one seed; runs in a helper process, hence the tokenizer as text."""
    text, seed = task
    tokenizer = Tokenizer.from_str(text)
    return [encode(tokenizer, document) for document in documents(seed, POOL_DOCUMENTS)]


def batches(samples: list[Sample], rng: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches `(batch, length)` of documents of like length, in random order; documents never see each other."""
    order = sorted(samples, key=lambda sample: len(sample.tokens) + rng.random() * 8)
    groups: list[list[Sample]] = [[]]
    for sample in order:
        if groups[-1] and len(sample.tokens) * (len(groups[-1]) + 1) > TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(sample)
    rng.shuffle(groups)
    for group in groups:
        length = max(len(sample.tokens) for sample in group)
        tokens = torch.zeros(len(group), length, dtype=torch.long)
        learn = torch.zeros(len(group), length, dtype=torch.bool)
        for row, sample in enumerate(group):
            tokens[row, : len(sample.tokens)] = torch.from_numpy(sample.tokens)
            learn[row, : len(sample.tokens)] = torch.from_numpy(sample.learn)
        yield tokens, learn


def endless_batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh documents for ever, made by one helper process a little ahead of the training."""
    text, rng = tokenizer.to_str(), Random(seed)
    with Pool(1) as pool:
        following = pool.apply_async(encode_pool, ((text, seed + 1),))
        for index in range(2, sys.maxsize):
            samples = following.get()
            following = pool.apply_async(encode_pool, ((text, seed + index),))
            yield from batches(samples, rng)


def optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [weight for name, weight in network.named_parameters() if weight.dim() == 2 and name.startswith("blk")]
    others = [weight for name, weight in network.named_parameters() if weight.dim() == 1 or not name.startswith("blk")]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(share: float) -> float:
    """The learning-rate factor at a share of the run in 0..1: warm-up, then a straight line down to 1 %."""
    if share < WARMUP_SHARE:
        return max(share / WARMUP_SHARE, 0.01)
    return max(1.0 - share, 0.01)


def train_step(network: Network, source: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, int, int]:
    """Accumulate gradients over one step's batches: `(loss per learnt token, learnt tokens, tokens)`."""
    picked: list[tuple[Tensor, Tensor]] = []
    while sum(tokens.numel() for tokens, _ in picked) < TOKENS_PER_STEP:
        picked.append(next(source))
    learnt = sum(int(learn[:, 1:].sum()) for _, learn in picked)
    total = 0.0
    for tokens, learn in picked:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network.loss(tokens, learn) / learnt
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    return total, learnt, sum(tokens.numel() for tokens, _ in picked)


@dataclass(slots=True)
class Progress:
    """How far the training is; `spent_s` counts training time over all runs that were resumed."""

    spent_s: float = 0.0
    steps: int = 0
    tokens: int = 0
    learnt: int = 0
    loss: float = 0.0

    def add(self, loss: float, learnt: int, tokens: int) -> None:
        """Count one step; the loss is a running mean."""
        self.loss = loss if not self.steps else 0.97 * self.loss + 0.03 * loss
        self.steps, self.tokens, self.learnt = self.steps + 1, self.tokens + tokens, self.learnt + learnt

    def __str__(self) -> str:
        return (
            f"{self.spent_s / 60:.1f} min, step {self.steps}, {self.tokens / 1e6:.2f} M tokens, "
            f"{self.learnt / 1e6:.2f} M learnt, "
            f"loss {self.loss:.4f}"
        )


class Trainer:
    """The state of a training run, and its files: the GGUF at `out`, a checkpoint to resume from next to it."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        self.checkpoint = out.with_suffix(".pt")
        saved = torch.load(self.checkpoint, weights_only=True) if self.checkpoint.exists() else None
        torch.manual_seed(seed)
        if saved:
            self.tokenizer = Tokenizer.from_str(saved["tokenizer"])
        else:
            texts = ("".join(piece.text for piece in document) for document in documents(seed, TOKENIZER_DOCUMENTS))
            self.tokenizer = train_tokenizer(texts, VOCAB_TARGET)
        self.network = Network(Shape(vocab=self.tokenizer.get_vocab_size(with_added_tokens=True)))
        self.optimizers = optimizers(self.network)
        self.progress = Progress()
        if saved:
            self.network.load_state_dict(saved["network"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.progress = Progress(**saved["progress"])

    def __str__(self) -> str:
        parameters = sum(weight.numel() for weight in self.network.parameters())
        return f"{parameters} parameters, {self.network.shape.vocab} tokens, {self.progress}"

    def save(self) -> None:
        """Write the checkpoint and the GGUF."""
        state = {
            "tokenizer": self.tokenizer.to_str(),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }
        torch.save(state, self.checkpoint)
        export_gguf(self.out, self.network.shape, dict(self.network.named_parameters()), self.tokenizer)

    def run(self, minutes: float, save_every_s: float) -> None:
        """Train up to `minutes` in all; the learning rate follows the clock, so a slow machine just sees less text."""
        source = endless_batches(self.tokenizer, self.seed + 1000 * self.progress.steps)
        last = saved = time.monotonic()
        while self.progress.spent_s < minutes * 60:
            factor = rate(self.progress.spent_s / (minutes * 60))
            for optimizer, base in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
                optimizer.param_groups[0]["lr"] = base * factor
            self.progress.add(*train_step(self.network, source))
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            now = time.monotonic()
            self.progress.spent_s, last = self.progress.spent_s + now - last, now
            if self.progress.steps % 50 == 0:
                print(self.progress, flush=True)
            if now - saved > save_every_s:
                self.save()
                saved = now
        self.save()
        print(f"done: {self.progress}, {self.out.stat().st_size} bytes", flush=True)
