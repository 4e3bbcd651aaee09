"""THItoGene: dynamic convolution and capsules see a patch, a transformer and graph attention the section.

Jia, Liu, Chen, Zhao, Wang: "THItoGene: a deep learning method for predicting spatial transcriptomics from histological
images", Briefings in Bioinformatics 25(1), 2024, bbad464, doi 10.1093/bib/bbad464.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import Batch, Output
from ...nn.capsules import CapsuleLayer
from ...nn.dynamic_convolution import DynamicConvolution
from ...nn.spot_graph import GraphAttention, Normalise, nearest
from ...nn.spot_transformer import HEAD_WIDTH, vit
from ...runtime.validators import choice
from .base import RivalConfig
from .on_array import OnArray, OnArrayConfig, squared_error
from .published import Shapes, count_blocks, published_network, published_state

KERNEL = 4  # side and stride of the dynamic convolution


@dataclass(frozen=True)
class THItoGeneConfig(OnArrayConfig):
    """Settings of THItoGene, beside those of all rivals on arrays; the defaults are its authors' for HER2+.

    Parameters
    ----------
    channels
        Of the maps after the dynamic convolution, and after each of the four convolutions that follow it.
    primary_width
        Channels of the last map that a primary capsule is made of.
    n_capsules, capsule_width
        Number and length of a patch's capsules; the position embeddings are as long as a capsule each.
    vit_depth
        Transformer blocks.
    hidden
        Width inside their feed-forward networks.
    n_neighbors
        Nearest spots that a spot looks at in the graph.
    gat_heads, gat_width, gat_out
        Graph attention: heads of the first layer, width of each, width of the second.
    normalise
        What the graph's attention weights sum to 1 over: "receivers", as in the published code, or each spot's
        "neighbours", as the paper on graph attention has it.
    gene_width
        Width of the layer before the genes.
    """

    called: ClassVar[str] = "THItoGene's config"

    epochs: int = 300
    channels: tuple[int, ...] = (16, 32, 64, 64, 128)
    primary_width: int = 8
    n_capsules: int = 20
    capsule_width: int = 64
    vit_depth: int = 4
    hidden: int = 2048
    n_neighbors: int = 4
    gat_heads: int = 8
    gat_width: int = 1024
    gat_out: int = 512
    normalise: Normalise = "receivers"
    gene_width: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("config.normalise", self.normalise, get_args(Normalise))
        if len(self.channels) != 5 or not all(isinstance(c, int) and c > 0 for c in self.channels):
            raise ValueError(f"config.channels must be five whole numbers above 0, not {self.channels!r}")
        if self.channels[-1] % self.primary_width:
            raise ValueError(
                f"config.channels: the last, {self.channels[-1]}, must be a multiple of config.primary_width "
                f"({self.primary_width})"
            )
        if CapsuleLayer.side_of_maps(self.patch_size // KERNEL) < 1:
            raise ValueError(f"config.patch_size={self.patch_size} is too small for the convolutions: at least 44")


class THItoGeneNetwork(nn.Module):
    """z = [capsules of the patch, x_embed[x], y_embed[y]]; transformer; graph attention; expression by two layers.

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Number of genes.
    """

    def __init__(self, config: THItoGeneConfig, n_genes: int) -> None:
        super().__init__()
        self.n_neighbors = config.n_neighbors
        first, one, two, three, four = config.channels
        self.odconv2d = DynamicConvolution(3, first, KERNEL)
        self.caps_layer = CapsuleLayer(
            (first, one, two, three, four),
            config.patch_size // KERNEL,
            config.primary_width,
            config.n_capsules,
            config.capsule_width,
        )
        self.x_embed = nn.Embedding(config.n_positions, config.capsule_width)
        self.y_embed = nn.Embedding(config.n_positions, config.capsule_width)
        self.dropout = nn.Dropout(config.dropout)
        width = (config.n_capsules + 2) * config.capsule_width
        self.vit = vit(
            config.vit_depth, width, config.hidden, config.vit_heads, config.dropout, head_width=config.head_width
        )
        self.gat = GraphAttention(
            width, config.gat_width, config.gat_out, config.gat_heads, config.dropout, config.normalise
        )
        self.gene_head = nn.Sequential(
            nn.Linear(config.gat_out, config.gene_width),
            nn.ReLU(),
            nn.LayerNorm(config.gene_width),
            nn.Linear(config.gene_width, n_genes),
        )

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S) to capsules (N, n_capsules, capsule_width); pixels 0..255, axes (channel, column, row)."""
        pixels = patches[:, 0].transpose(-1, -2).to(self.odconv2d.weight.dtype).contiguous()
        return self.caps_layer(F.relu(self.odconv2d(pixels)))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict a section from `encode`'s capsules and array coordinates (N, 2)."""
        return self.predict(self.attend(features, positions), nearest(positions, self.n_neighbors))

    def attend(self, capsules: Tensor, positions: Tensor) -> Tensor:
        """Take all spots through the transformer, (N, width)."""
        x, y = positions.unbind(1)
        return self.vit(self.dropout(torch.cat([capsules.flatten(1), self.x_embed(x), self.y_embed(y)], dim=1)))

    def predict(self, tokens: Tensor, adjacency: Tensor) -> Output:
        """Predict from what the transformer gave, and the graph (N, N)."""
        latent = self.gat(tokens, adjacency)
        return Output(self.gene_head(latent), latent, None)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the mean squared error of a section."""
        return squared_error(self, batch)


class THItoGene(OnArray):
    """THItoGene: capsules see a patch, transformer and graph the section; `hggep_sc.tl.fit(method="thitogene")`."""

    method = "thitogene"
    configured_by = THItoGeneConfig

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> THItoGeneNetwork:
        """Build the network."""
        assert isinstance(config, THItoGeneConfig)
        return THItoGeneNetwork(config, n_genes)

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a Lightning checkpoint of the authors' code, or the state dict in it."""
        state = published_state(path, within="state_dict")
        return published_network(cls, path, state, sizes, bias="gene_head.3.bias", n_genes=n_genes)


def sizes(shapes: Shapes) -> THItoGeneConfig:
    """Return the settings of a checkpoint of 112 px, whose attention heads are 64 wide."""
    layers = "vit.transformer.layers."
    convolved = (shapes[f"caps_layer.conv{number}.bias"][0] for number in range(1, 5))
    n_capsules, _, primary_width, capsule_width = shapes["caps_layer.digit_caps.W"]
    inner, _ = shapes[f"{layers}0.0.fn.to_qkv.weight"]
    hidden, _ = shapes[f"{layers}0.1.fn.net.0.weight"]
    n_positions, _ = shapes["x_embed.weight"]
    _, gat_width = shapes["gat.attention_0.W"]
    _, gat_out = shapes["gat.out_att.W"]
    return THItoGeneConfig(
        channels=(shapes["odconv2d.weight"][1], *convolved),
        primary_width=primary_width,
        n_capsules=n_capsules,
        capsule_width=capsule_width,
        vit_depth=count_blocks(shapes, layers),
        vit_heads=inner // 3 // HEAD_WIDTH,
        hidden=hidden,
        n_positions=n_positions,
        gat_heads=count_blocks(shapes, "gat.attention_"),
        gat_width=gat_width,
        gat_out=gat_out,
        gene_width=shapes["gene_head.0.bias"][0],
    )
