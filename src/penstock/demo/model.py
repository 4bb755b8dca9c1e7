"""A causal transformer small enough for one CPU thread, its sampling, and its token log-probabilities.

Invariants: sampling and scoring run the same forward pass, so the behaviour log-probabilities stored at generation are
those that the trainer would compute with the same weights; weights travel as safetensors, never as pickle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock.demo.spec import ModelSpec

__all__ = ["Policy", "answer_logprobs", "generate"]


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(rows, length, width))
        out: Tensor = x + self.mlp(self.before_mlp(x))
        return out


class Policy(nn.Module):
    """Tokens ``[rows, length]`` to logits ``[rows, length, vocab]``."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.token = nn.Embedding(spec.vocab, spec.width)
        self.place = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads) for _ in range(spec.layers))
        self.last = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, spec.vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.last(x))
        return logits


@torch.no_grad()
def generate(policy: Policy, prompts: Tensor, length: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample ``length`` tokens after each prompt. Returns answers int64 and their log-probabilities float32."""
    tokens, logprobs = prompts, []
    for _ in range(length):
        scores = policy(tokens)[:, -1].log_softmax(dim=-1)
        chosen = torch.multinomial(scores.exp(), 1, generator=source)
        logprobs.append(scores.gather(1, chosen))
        tokens = torch.cat([tokens, chosen], dim=1)
    return tokens[:, prompts.shape[1] :], torch.cat(logprobs, dim=1)


def answer_logprobs(policy: Policy, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return float32 ``[rows, answer length]``: what the policy thinks of each answer token."""
    tokens = torch.cat([prompts, answers], dim=1)
    logits = policy(tokens[:, :-1])[:, prompts.shape[1] - 1 :]
    scores: Tensor = logits.log_softmax(dim=-1).gather(2, answers.unsqueeze(2)).squeeze(2)
    return scores
