"""HisToGene: a transformer whose tokens are a section's patches, each flattened and projected.

Pang, Su, Li: "Leveraging information in spatial transcriptomics to predict super-resolution gene expression from
histology images in tumors", bioRxiv, 2021, doi 10.1101/2021.11.28.470212.
"""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...nn import Batch, Output
from ...nn.spot_transformer import HEAD_WIDTH, vit
from .base import RivalConfig
from .on_array import OnArray, OnArrayConfig, squared_error
from .published import Shapes, count_blocks, published_network, published_state


@dataclass(frozen=True)
class HisToGeneConfig(OnArrayConfig):
    """Settings of HisToGene, beside those of all rivals on arrays; the defaults are its authors' for HER2+.

    Parameters
    ----------
    width
        Length of a spot's token.
    vit_depth
        Transformer blocks.
    hidden
        Width inside their feed-forward networks.
    """

    called: ClassVar[str] = "HisToGene's config"

    dropout: float = 0.1
    width: int = 1024
    vit_depth: int = 8
    hidden: int = 2048


class HisToGeneNetwork(nn.Module):
    """z = W patch + x_embed[x] + y_embed[y]; transformer over the spots; expression = linear(LN(z)).

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Number of genes.
    """

    def __init__(self, config: HisToGeneConfig, n_genes: int) -> None:
        super().__init__()
        width = config.width
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, width)
        self.x_embed = nn.Embedding(config.n_positions, width)
        self.y_embed = nn.Embedding(config.n_positions, width)
        self.dropout = nn.Dropout(config.dropout)
        self.vit = vit(
            config.vit_depth, width, config.hidden, config.vit_heads, config.dropout, head_width=config.head_width
        )
        self.gene_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_genes))

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S) to (N, width); pixels 0..255, flattened as (column, row, channel)."""
        pixels = patches[:, 0].permute(0, 3, 2, 1).flatten(1)
        return self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict a section from `encode`'s features and array coordinates (N, 2)."""
        z = self.vit(self.dropout(self.embed(features, positions)))
        return Output(self.gene_head(z), z, None)

    def embed(self, features: Tensor, positions: Tensor) -> Tensor:
        """Tell where each spot is."""
        x, y = positions.unbind(1)
        return features + self.x_embed(x) + self.y_embed(y)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the mean squared error of a section."""
        return squared_error(self, batch)


class HisToGene(OnArray):
    """HisToGene: a transformer whose tokens are a section's patches; `hggep_sc.tl.fit(method="histogene")`."""

    method = "histogene"
    configured_by = HisToGeneConfig

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> HisToGeneNetwork:
        """Build the network."""
        assert isinstance(config, HisToGeneConfig)
        return HisToGeneNetwork(config, n_genes)

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a Lightning checkpoint of the authors' code, or the state dict in it."""
        state = published_state(path, within="state_dict")
        return published_network(cls, path, state, sizes, bias="gene_head.1.bias", n_genes=n_genes)


def sizes(shapes: Shapes) -> HisToGeneConfig:
    """Return the settings of a checkpoint, whose heads are 64 wide."""
    layers = "vit.transformer.layers."
    width, pixels = shapes["patch_embedding.weight"]
    inner, _ = shapes[f"{layers}0.0.fn.to_qkv.weight"]
    hidden, _ = shapes[f"{layers}0.1.fn.net.0.weight"]
    n_positions, _ = shapes["x_embed.weight"]
    patch_size = isqrt(pixels // 3)
    return HisToGeneConfig(
        patch_size=patch_size,
        fields_px=(float(patch_size),),
        width=width,
        vit_depth=count_blocks(shapes, layers),
        vit_heads=inner // 3 // HEAD_WIDTH,
        hidden=hidden,
        n_positions=n_positions,
    )
