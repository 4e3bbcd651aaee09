"""Transformer over the spots of a section, equations 10-12 of the paper, as in ViT (pre-LayerNorm, residual)."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over spots, (N, D) -> (N, D)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape
        q, k, v = self.qkv(x).view(1, n, 3, self.heads, width // self.heads).transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(n, width))


class Block(nn.Module):
    """z' = z + MSA(LN(z)); z'' = z' + FFN(LN(z'))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    @property
    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """Layers whose output is added to z: where they give nothing, the block is the identity."""
        return self.attention.out, self.ffn[-2]

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attention(self.attention_norm(z))
        return z + self.ffn(self.ffn_norm(z))


class ViT(nn.Sequential):
    """A stack of blocks; the tokens are the N spots of a section."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__(*(Block(width, heads, dropout) for _ in range(depth)))
