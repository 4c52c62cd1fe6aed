"""Qwen3 in a hundred lines, for training on a CPU: the same weights and figures as the one that vLLM and
transformers run.

Two things make it several times as fast as the general code: all tokens of a batch go through each matrix at
once, and the prefix that the rows have in common is computed once, its keys and values (gradient and all)
shared by them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the model."""

    vocabulary: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def feed_forward(self) -> int:
        return 3 * self.hidden


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, NORM_EPSILON)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head = shape.heads, shape.head
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(4)
        )
        self.q_norm, self.k_norm = Norm(shape.head), Norm(shape.head)

    def forward(self, x: Tensor, rope: Rope, layout: Layout) -> Tensor:
        q = rope(self.q_norm(self.q_proj(x).view(-1, self.heads, self.head)))
        k = rope(self.k_norm(self.k_proj(x).view(-1, self.heads, self.head)))
        v = self.v_proj(x).view(-1, self.heads, self.head)
        return self.o_proj(layout.attend(q, k, v).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), FeedForward(shape)
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.hidden), Norm(shape.hidden)

    def forward(self, x: Tensor, rope: Rope, layout: Layout) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, layout)
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass(frozen=True, slots=True)
class Layout:
    """How the flat tokens are arranged: `prefix` tokens first, then `rows` rows of `width` tokens each."""

    prefix: int
    rows: int
    width: int
    mask: Tensor
    """(width, prefix + width): True where a row's token may look."""

    @classmethod
    def of(cls, prefix: Tensor, ids: Tensor) -> Layout:
        length, (rows, width) = prefix.numel(), ids.shape
        mask = torch.ones(width, length + width, dtype=torch.bool, device=ids.device).tril(length)
        return cls(length, rows, width, mask)

    def positions(self) -> Tensor:
        own = torch.arange(self.prefix + self.width, device=self.mask.device)
        return torch.cat([own[: self.prefix], own[self.prefix :].repeat(self.rows)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, heads, head) each, N = prefix + rows * width, to the same shape."""
        head, shared = self._prefix(q), (self._prefix(k), self._prefix(v))
        first = functional.scaled_dot_product_attention(head, *shared, is_causal=True)
        keys, values = (
            torch.cat([common.expand(self.rows, -1, -1, -1), self._rows(own)], dim=2)
            for common, own in zip(shared, (k, v), strict=True)
        )
        rest = functional.scaled_dot_product_attention(self._rows(q), keys, values, attn_mask=self.mask)
        return torch.cat([first.transpose(1, 2).flatten(0, 1), rest.transpose(1, 2).flatten(0, 1)])

    def _prefix(self, x: Tensor) -> Tensor:
        return x[: self.prefix].transpose(0, 1).unsqueeze(0)

    def _rows(self, x: Tensor) -> Tensor:
        return x[self.prefix :].unflatten(0, (self.rows, self.width)).transpose(1, 2)


class Rope:
    """Rotary position embedding with halves rotated, as Qwen3 has it."""

    def __init__(self, positions: Tensor, head: int) -> None:
        rate = ROPE_THETA ** (-torch.arange(0, head, 2, device=positions.device) / head)
        angle = (positions[:, None] * rate)[:, None, :]
        self._cos, self._sin = angle.cos(), angle.sin()

    def __call__(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self._cos - b * self._sin, b * self._cos + a * self._sin], dim=-1)


class Qwen3(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else shape.hidden**-0.5)

    def forward(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """Final hidden states (B, T, hidden) of `ids` (B, T) after the common `prefix` (P,)."""
        layout = Layout.of(prefix, ids)
        rope = Rope(layout.positions(), self.shape.head)
        x = self.embed_tokens(torch.cat([prefix, ids.flatten()]))
        for layer in self.layers:
            x = layer(x, rope, layout)
        return self.norm(x[layout.prefix :]).unflatten(0, ids.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head is the embedding, transposed."""
        return hidden @ self.embed_tokens.weight.T

    def save(self, directory: Path, *, end: int, pad: int) -> None:
        """The folder that vLLM and transformers load. bfloat16 halves the file; every published figure is
        with it."""
        state = {
            f"model.{k}": v.detach().to(torch.bfloat16).cpu().contiguous()
            for k, v in self.state_dict().items()
        }
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.shape.vocabulary,
            "hidden_size": self.shape.hidden,
            "intermediate_size": self.shape.feed_forward,
            "num_hidden_layers": self.shape.layers,
            "num_attention_heads": self.shape.heads,
            "num_key_value_heads": self.shape.heads,
            "head_dim": self.shape.head,
            "max_position_embeddings": 2048,
            "rope_theta": ROPE_THETA,
            "rms_norm_eps": NORM_EPSILON,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "eos_token_id": end,
            "pad_token_id": pad,
            "dtype": "bfloat16",
        }
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        generation = {"eos_token_id": end, "pad_token_id": pad}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, directory: Path) -> Qwen3:
        """Raises FileNotFoundError where there is no model."""
        config = json.loads((directory / "config.json").read_text("utf-8"))
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        model = cls(Shape(*(config[name] for name in names)))
        state = load_file(directory / "model.safetensors")
        model.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
        return model
