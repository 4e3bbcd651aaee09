"""Hist2ST: ConvMixer, transformer, graph layers and an LSTM over these, with ZINB loss and self-distillation.

Zeng et al.: "Spatial transcriptomics prediction from histology jointly through Transformer and graph neural networks",
Briefings in Bioinformatics 23(5), 2022, bbac297, doi 10.1093/bib/bbac297.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import plain
from ...nn import Batch, CountParameters, Output
from ...nn.conv_mixer import ConvMixerBlock
from ...nn.losses import distillation, zinb_nll, zinb_parameters
from ...nn.spot_graph import GraphLayer, Pooling, nearest
from ...nn.spot_transformer import HEAD_WIDTH, block
from ...nn.views import augment, set_views
from ...runtime.validators import choice, number
from .base import RivalConfig
from .on_array import OnArray, OnArrayConfig
from .published import Shapes, count_blocks, published_network, published_state

CountLoss = Literal["zinb", "nb"]


@dataclass(frozen=True)
class Hist2STConfig(OnArrayConfig):
    """Settings of Hist2ST, beside those of all rivals on arrays; the defaults are its authors' for HER2+.

    Parameters
    ----------
    tile
        Side and stride of the convolution that a patch comes in by, px.
    channels
        Of the ConvMixer; an eighth of them, at each of its places, make a spot's token.
    kernel
        Side of the ConvMixer's depthwise kernels.
    mixer_depth, vit_depth, graph_depth
        Blocks of the ConvMixer and of the transformer, graph layers.
    n_neighbors
        Nearest spots that a spot looks at in the graph.
    reach
        Array units from which on a spot is too far to be a neighbour (the published "Grid"). None: none is ("NA").
    pooling
        What a spot takes of its neighbours: their "mean" or "max".
    count_loss, count_weight
        Likelihood of the raw counts in the loss: "zinb" or "nb"; and its weight.
    distillation_weight
        Weight of self-distillation in the loss.
    views
        Augmented copies of a section, for that.
    decay, decay_epochs
        Factor of the learning rate, and after how many epochs it is applied each time.
    """

    called: ClassVar[str] = "Hist2ST's config"

    epochs: int = 350
    tile: int = 7
    channels: int = 32
    kernel: int = 5
    mixer_depth: int = 2
    vit_depth: int = 8
    graph_depth: int = 4
    n_neighbors: int = 4
    reach: float | None = 2.0
    pooling: Pooling = "mean"
    count_loss: CountLoss = "zinb"
    count_weight: float = 0.25
    distillation_weight: float = 0.5
    views: int = 5
    decay: float = 0.9
    decay_epochs: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("config.pooling", self.pooling, get_args(Pooling))
        choice("config.count_loss", self.count_loss, get_args(CountLoss))
        if self.reach is not None:
            object.__setattr__(self, "reach", number("config.reach", plain(self.reach), least=0))
        if self.kernel % 2 == 0:
            raise ValueError(f"config.kernel={self.kernel} must be odd")
        if self.channels % 8:
            raise ValueError(f"config.channels={self.channels} must be a multiple of 8")
        if self.patch_size < self.tile:
            raise ValueError(f"config.tile={self.tile} is larger than config.patch_size ({self.patch_size})")

    @property
    def width(self) -> int:
        """Length of a spot's token."""
        return (self.patch_size // self.tile) ** 2 * self.channels // 8


class Transformer(nn.Module):
    """What stands between patch embedding and heads, under the names of the published state dict."""

    def __init__(self, config: Hist2STConfig) -> None:
        super().__init__()
        width, channels = config.width, config.channels
        self.layer1 = nn.Sequential(*(ConvMixerBlock(channels, config.kernel) for _ in range(config.mixer_depth)))
        self.layer2 = nn.Sequential(
            *(
                block(width, width, config.vit_heads, config.dropout, head_width=config.head_width)
                for _ in range(config.vit_depth)
            )
        )
        self.layer3 = nn.ModuleList(GraphLayer(width, config.pooling) for _ in range(config.graph_depth))
        self.jknet = nn.Sequential(nn.LSTM(width, width, num_layers=2))
        self.down = nn.Sequential(nn.Conv2d(channels, channels // 8, 1), nn.Flatten())


class Hist2STNetwork(nn.Module):
    """z = ConvMixer(patch) + x_embed[x] + y_embed[y]; transformer; graph layers; the mean of an LSTM over these.

    Parameters
    ----------
    config
        Sizes, and the weights of the loss.
    n_genes
        Number of genes.
    """

    def __init__(self, config: Hist2STConfig, n_genes: int) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.patch_embedding = nn.Conv2d(3, config.channels, config.tile, stride=config.tile)
        self.dropout = nn.Dropout(config.dropout)
        self.x_embed = nn.Embedding(config.n_positions, width)
        self.y_embed = nn.Embedding(config.n_positions, width)
        self.vit = nn.ModuleDict({"transformer": Transformer(config)})

        def per_gene() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, n_genes))

        if config.count_loss == "zinb":
            self.mean, self.disp, self.pi = per_gene(), per_gene(), per_gene()
        else:
            self.hr, self.hp = nn.Linear(width, n_genes), nn.Linear(width, n_genes)
        self.coef = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.gene_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_genes))

    @property
    def body(self) -> Transformer:
        """What stands between patch embedding and heads."""
        return cast(Transformer, self.vit["transformer"])

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S) to (N, width)."""
        return self.features(self.pixels(patches)[None])[0]

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict a section from `encode`'s features and array coordinates (N, 2)."""
        latent = self.latent(self.attend(features, positions), self.graph(positions))
        return Output(self.gene_head(latent), latent, self.count_parameters(latent))

    def pixels(self, patches: Tensor) -> Tensor:
        """Pixels 0..255 as the published code crops them: axes (spot, channel, column, row)."""
        return patches[:, 0].transpose(-1, -2).to(self.patch_embedding.weight.dtype).contiguous()

    def features(self, pixels: Tensor) -> Tensor:
        """See each patch by itself: (views, N, 3, S, S) to (views, N, width), each view by its own batch statistics."""
        set_views(self, len(pixels))
        tiles = self.dropout(self.patch_embedding(pixels.flatten(0, 1)))
        seen = self.body.down(self.body.layer1(tiles))
        return seen.unflatten(0, (len(pixels), -1))

    def attend(self, features: Tensor, positions: Tensor) -> Tensor:
        """Tell where each spot is, and take all through the transformer: (..., N, width) to the same shape."""
        x, y = positions.unbind(1)
        return self.body.layer2(features + self.x_embed(x) + self.y_embed(y))

    def graph(self, positions: Tensor) -> Tensor:
        """0/1 matrix (N, N) of the spots that each looks at."""
        return nearest(positions, self.config.n_neighbors, self.config.reach)

    def latent(self, tokens: Tensor, adjacency: Tensor) -> Tensor:
        """Average the LSTM's outputs over the graph layers, one after the other: (..., N, width) to the same shape."""
        steps = []
        for layer in self.body.layer3:
            tokens = layer(tokens, adjacency)
            steps.append(tokens)
        sequence, _ = self.body.jknet(torch.stack(steps).flatten(1, -2))
        return sequence.mean(0).view_as(tokens)

    def count_parameters(self, latent: Tensor) -> CountParameters | None:
        """ZINB of the raw counts; None where these are taken for plain NB."""
        if self.config.count_loss == "nb":
            return None
        return zinb_parameters(self.mean(latent), self.disp(latent), self.pi(latent))

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """MSE + 0.25 NLL of the counts + 0.5 self-distillation over five augmented views of one section.

        MSE and likelihood look at the spots with counts alone (`batch.observed`), distillation at all spots.

        Returns
        -------
        The weighted sum under "loss", and the terms "mse", "zinb" or "nb", "distillation".
        """
        assert batch.patches is not None  # there is no other encoder
        pixels = self.pixels(batch.patches)
        return self.loss_of_views(torch.cat([pixels[None], augment(pixels, self.config.views, generator)]), batch)

    def loss_of_views(self, views: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the section's pixels and then its augmented views being given, (1 + views, N, 3, S, S)."""
        config, seen = self.config, batch.observed
        tokens = self.attend(self.features(views), batch.positions)
        latent = self.latent(tokens, self.graph(batch.positions))
        prediction, *augmented = self.gene_head(latent)
        mse = F.mse_loss(prediction[seen], batch.expression[seen])
        nll = self.count_nll(latent[0, seen], batch.counts[seen], batch.size_factors[seen])
        agreement = distillation(prediction, torch.stack(augmented), self.coef(latent[1:]))
        total = mse + config.count_weight * nll + config.distillation_weight * agreement
        return {"loss": total, "mse": mse, config.count_loss: nll, "distillation": agreement}

    def count_nll(self, latent: Tensor, counts: Tensor, size_factors: Tensor) -> Tensor:
        """Negative log-likelihood of raw counts (N, G); in the published NB a spot's genes are summed."""
        if (parameters := self.count_parameters(latent)) is not None:
            return zinb_nll(counts, *parameters, size_factors)
        return published_nb(counts, self.hr(latent).float(), self.hp(latent).float())


def published_nb(counts: Tensor, log_r: Tensor, p: Tensor) -> Tensor:
    """- mean over spots of sum over genes: ln Gamma(r + x) - ln Gamma(r) + p x - (x + r) ln(1 + e^p).

    It leaves out the term that depends on the counts alone. All are (N, G).
    """
    r = log_r.exp()
    likelihood = torch.lgamma(r + counts) - torch.lgamma(r) + p * counts - (counts + r) * F.softplus(p)
    return -likelihood.sum(1).mean()


class Hist2ST(OnArray):
    """Hist2ST: ConvMixer, transformer and graph layers; `hggep_sc.tl.fit(method="hist2st")`."""

    method = "hist2st"
    configured_by = Hist2STConfig

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> Hist2STNetwork:
        """Build the network."""
        assert isinstance(config, Hist2STConfig)
        return Hist2STNetwork(config, n_genes)

    @classmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """Adam, whose rate falls by steps."""
        assert isinstance(config, Hist2STConfig)
        adam = super().optimiser(config, parameters)
        return [adam], [torch.optim.lr_scheduler.StepLR(adam, config.decay_epochs, config.decay)]

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a state dict of the authors' code."""
        return published_network(
            cls, path, published_state(path, within="state_dict"), sizes, bias="gene_head.1.bias", n_genes=n_genes
        )


def sizes(shapes: Shapes) -> Hist2STConfig:
    """Return the settings of a checkpoint, whose attention heads are 64 wide."""
    body = "vit.transformer."
    inner, _ = shapes[f"{body}layer2.0.attn.fn.to_qkv.weight"]
    channels, _, tile, _ = shapes["patch_embedding.weight"]
    n_positions, width = shapes["x_embed.weight"]
    patch_size = isqrt(8 * width // channels) * tile
    return Hist2STConfig(
        patch_size=patch_size,
        fields_px=(float(patch_size),),
        tile=tile,
        channels=channels,
        kernel=shapes[f"{body}layer1.0.dw.0.weight"][-1],
        mixer_depth=count_blocks(shapes, f"{body}layer1."),
        vit_depth=count_blocks(shapes, f"{body}layer2."),
        vit_heads=inner // 3 // HEAD_WIDTH,
        graph_depth=count_blocks(shapes, f"{body}layer3."),
        n_positions=n_positions,
        count_loss="nb" if "hr.bias" in shapes else "zinb",
    )
