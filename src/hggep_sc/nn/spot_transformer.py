"""The transformer of HisToGene, and of Hist2ST, THItoGene and the released HGGEP after it; the spots are the tokens.

Names of modules are those of the published state dicts. HGGEP's own is in `transformer.py`.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64


class Attention(nn.Module):
    """Self-attention of a section's spots, in each view by itself.

    Parameters
    ----------
    width
        Of a spot's token.
    heads
        Heads, each of `head_width`.
    dropout
        Of what is added to the tokens.
    head_width
        Length of a head's queries, keys and values.
    """

    def __init__(self, width: int, heads: int, dropout: float, head_width: int = HEAD_WIDTH) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, width) to the same shape."""
        n = x.shape[-2]
        # (views, heads, N, head_width): with other than four axes torch writes N x N weights to memory
        q, k, v = self.to_qkv(x).view(-1, n, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # softmax(q k' / sqrt(head_width)) v
        return self.to_out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class FeedForward(nn.Module):
    """Two layers with GELU."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, width) to the same shape."""
        return self.net(x)


class Residual(nn.Module):
    """x + fn(LayerNorm(x))."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, width) to the same shape."""
        return x + self.fn(self.norm(x))


def block(
    width: int,
    hidden: int,
    heads: int,
    dropout: float,
    *,
    head_width: int = HEAD_WIDTH,
    names: tuple[str, str] = ("attn", "ff"),
) -> nn.Sequential:
    """Return one block: x' = x + MSA(LN(x)), x'' = x' + FFN(LN(x')).

    Parameters
    ----------
    width, heads, dropout, head_width
        As in `Attention`.
    hidden
        Width inside the feed-forward network.
    names
        Of its two halves.
    """
    halves = Attention(width, heads, dropout, head_width), FeedForward(width, hidden, dropout)
    return nn.Sequential(OrderedDict((name, Residual(width, half)) for name, half in zip(names, halves, strict=True)))


def vit(
    depth: int, width: int, hidden: int, heads: int, dropout: float, *, head_width: int = HEAD_WIDTH
) -> nn.Sequential:
    """Return so many blocks under the names of HisToGene and THItoGene: `transformer.layers.<block>.<half>`."""
    blocks = (block(width, hidden, heads, dropout, head_width=head_width, names=("0", "1")) for _ in range(depth))
    return nn.Sequential(OrderedDict(transformer=nn.Sequential(OrderedDict(layers=nn.Sequential(*blocks)))))
