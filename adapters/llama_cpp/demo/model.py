"""The demo network: a small Llama decoder in PyTorch, laid out so that the GGUF export needs no permutation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; `width` and `hidden` are multiples of 32, as Q8_0 blocks demand."""

    vocab: int
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 512
    context: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def rope_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each `(length, head_width / 2)`."""
    steps = torch.arange(0, shape.head_width, 2, dtype=torch.float32) / shape.head_width
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_base**-steps)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x` `(batch, heads, length, head_width)`: llama.cpp's "norm" rope order."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


class Block(nn.Module):  # type: ignore[misc]
    """One pre-norm layer: grouped-query attention, then a SwiGLU feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        kv_width = shape.kv_heads * shape.head_width
        self.shape = shape
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal self-attention over `x` `(batch, length, width)`."""
        batch, length, width = x.shape
        shape = self.shape
        split = (batch, length, -1, shape.head_width)
        q = rotate(self.attn_q(x).view(split).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(x).view(split).transpose(1, 2), cos, sin)
        v = self.attn_v(x).view(split).transpose(1, 2)
        repeat = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        # Spelled out: at these sizes it is faster on a CPU than the fused kernel.
        scores = (q * shape.head_width**-0.5) @ k.transpose(-1, -2)
        future = torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
        y = torch.softmax(scores + future, dim=-1, dtype=scores.dtype) @ v
        return self.attn_output(y.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Network(nn.Module):  # type: ignore[misc]
    """Token ids `(batch, length)` to hidden states; the output matrix is the embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        cos, sin = rope_tables(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset()

    def reset(self) -> None:
        """Small normal weights; the two matrices that write to the residual stream start smaller."""
        depth_scale = (2 * self.shape.layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 if name.startswith("token_embd") else self.shape.width**-0.5)
                if last:
                    weight.data.mul_(depth_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states `(batch, length, width)` after the last norm."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output_norm(x)

    def loss(self, tokens: Tensor, learn: Tensor) -> Tensor:
        """Sum of the cross-entropy over tokens with `learn` set; both arguments are `(batch, length)`.

        The vocabulary projection runs only where something is learnt, which saves most of its cost on long prompts.
        """
        hidden = self.forward(tokens[:, :-1])
        wanted = learn[:, 1:]
        logits = functional.linear(hidden[wanted], self.token_embd.weight)
        return functional.cross_entropy(logits.float(), tokens[:, 1:][wanted], reduction="sum")
