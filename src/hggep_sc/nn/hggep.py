"""The HGGEP network: an encoder's features, ViT, HAM, LSTM, head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder
from .hypergraph import HAM
from .interface import Batch, CountParameters, Output
from .losses import nb_nll, pearson_loss, zinb_nll
from .transformer import Block, ViT

if TYPE_CHECKING:
    import numpy as np

    from ..config import Config
    from ..section import Section

OUTLIER = 6.0  # standard deviations beyond which a standardised feature is cut off


class HGGEPNetwork(nn.Module):
    """Patches (or features) and positions of a section's spots -> log expression.

    Two presets configure it: `paper` as the paper specifies it, `default` leaner and residual.

    Parameters
    ----------
    config
        Sizes, switches and loss weights.
    n_genes
        Genes predicted.
    encoder
        From patches to features; None where features are given.
    groups
        Sizes of the groups of features, each of which becomes a token: the encoder's stages.
    n_fields
        Fields of view, each of which has all these features.
    """

    positions_on_host: ClassVar[bool] = False
    feature_mean: Tensor  # (fields, features)
    feature_std: Tensor
    gene_mean: Tensor  # (G,)
    basis: Tensor | None  # (components, G)

    def __init__(
        self, config: "Config", n_genes: int, *, encoder: Encoder | None, groups: Sequence[int], n_fields: int
    ) -> None:
        super().__init__()
        self.config, self.groups = config, tuple(groups)
        width, dropout, n_components = config.width, config.dropout, config.n_components
        self.encoder = encoder
        self.register_buffer("feature_mean", torch.zeros(n_fields, sum(groups)))
        self.register_buffer("feature_std", torch.ones(n_fields, sum(groups)))
        self.feature_dropout = nn.Dropout(dropout if config.residual else 0.0)
        self.reduce = nn.ModuleList(nn.Linear(n_fields * n, width) for n in groups)
        depth = config.vit_depth if config.vit else 0
        self.vit = nn.ModuleList(ViT(width, depth, config.vit_heads, dropout) for _ in groups)
        self.ham = HAM(width, config.n_neighbors, dropout) if config.ham else None
        self.lstm = nn.LSTM(width, width, config.lstm_layers, batch_first=True) if config.lstm else None
        self.lstm_scale = nn.Parameter(torch.zeros(width)) if config.lstm and config.residual else None
        self.head_norm = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout if config.residual else 0.0))
        self.head = nn.Linear(width, n_components or n_genes)
        if config.residual:
            self._start_at_nothing()
        self.count_heads = nn.Linear(width, 3 * n_genes) if config.count_weight else None
        # low rank: expression = gene_mean + scores @ basis; full rank: the basis is the identity, left out
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("basis", torch.zeros(n_components, n_genes) if n_components else None)

    def _start_at_nothing(self) -> None:
        """Zero the last layer of every module that adds to what it is given, and the head: each earns its effect."""
        last: list[nn.Module] = [self.head] if self.ham is None else [self.head, self.ham.conv2.lin]
        blocks = [module for module in self.vit.modules() if isinstance(module, Block)]
        last += [layer for block in blocks for layer in block.last_layers]
        for layer in last:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def encode(self, patches: Tensor) -> Tensor:
        """Patches (N, fields, 3, S, S), 0..255 -> features (N, fields, D)."""
        assert self.encoder is not None  # a network without one is given features
        return self.encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])

    def tokens(self, features: Tensor) -> list[Tensor]:
        """Features (N, fields, D) -> one token (N, width) per spot and group of features, from all fields."""
        standard = (features - self.feature_mean) / self.feature_std
        if self.config.standardize:
            standard = standard.clamp(-OUTLIER, OUTLIER)
        groups = self.feature_dropout(standard).split(self.groups, dim=2)
        return [reduce(group.flatten(1)) for reduce, group in zip(self.reduce, groups, strict=True)]

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Features (N, fields, D) and spot positions (N, 2) -> expression, over the spots of one section."""
        z = [vit(tokens) for vit, tokens in zip(self.vit, self.tokens(features), strict=True)]
        h = torch.stack(z).sum(0)
        if self.ham is not None:
            h_out = self.ham(h, positions)
            h = h + h_out if self.config.residual else h_out
            z.append(h)
        sequence = torch.stack(z, dim=1)
        latent = h if self.config.residual else sequence.mean(1)
        if self.lstm is not None:
            recurrent = self.lstm(sequence)[0].mean(1)
            latent = recurrent if self.lstm_scale is None else latent + self.lstm_scale * recurrent
        normed = self.head_norm(latent)
        return Output(self._expression(self.head(normed)), latent, self._counts(normed))

    def forward(self, patches: Tensor, positions: Tensor) -> Output:
        return self.decode(self.encode(patches), positions)

    def _expression(self, scores: Tensor) -> Tensor:
        scores = scores.float()  # under autocast: absolute log expression keeps single precision
        return self.gene_mean + (scores if self.basis is None else scores @ self.basis)

    def _counts(self, normed: Tensor) -> CountParameters | None:
        if self.count_heads is None:
            return None
        mean, dispersion, dropout = self.count_heads(normed).float().chunk(3, dim=1)
        return CountParameters(
            mean.exp().clamp(1e-5, 1e6), F.softplus(dispersion).clamp(1e-4, 1e4), torch.sigmoid(dropout)
        )

    @torch.no_grad()
    def start_from(self, gene_mean: Tensor, basis: Tensor | None, count_mean: Tensor) -> None:
        """Put the outputs at the training sections' means, and set the basis of the low-rank head."""
        self.gene_mean.copy_(gene_mean)
        if self.basis is not None and basis is not None:
            self.basis.copy_(basis)
        if self.count_heads is not None:
            n_genes = len(gene_mean)
            self.count_heads.bias[:n_genes] = count_mean.clamp_min(1e-3).log()

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply what is predicted around the gene means."""
        self.head.weight.mul_(factor)
        self.head.bias.mul_(factor)

    @torch.no_grad()
    def standardise_features(self, mean: Tensor, std: Tensor) -> None:
        """Set what features are centred and scaled by, each (fields, D)."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error, counts' likelihood and correlation over the observed spots of a batch.

        Returns
        -------
        The weighted sum under "loss", and each term by its name.
        """
        config, seen = self.config, batch.observed
        features = batch.features
        if features is None:
            assert batch.patches is not None  # a batch holds one or the other
            features = self.encode(batch.patches)
        out = self.decode(features, batch.positions)
        prediction, target = out.expression[seen], batch.expression[seen]
        terms = {"mse": F.mse_loss(prediction, target)}
        total = terms["mse"]
        if out.counts is not None:
            mean, dispersion, dropout = (parameter[seen] for parameter in out.counts)
            counts, size_factors = batch.counts[seen], batch.size_factors[seen]
            if config.count_loss == "zinb":
                terms["zinb"] = zinb_nll(counts, mean, dispersion, dropout, size_factors)
            else:
                terms["nb"] = nb_nll(counts, mean, dispersion, size_factors)
            total = total + config.count_weight * terms[config.count_loss]
        if config.correlation_weight:
            terms["correlation"] = pearson_loss(prediction, target)
            total = total + config.correlation_weight * terms["correlation"]
        return {"loss": total, **terms}

    @staticmethod
    def centres(xy: "np.ndarray") -> "np.ndarray":
        """Pixel positions that patches are centred on: the spots' own."""
        return xy

    @staticmethod
    def positions(section: "Section") -> "np.ndarray":
        """Spot positions for the hypergraph: pixels from the section's centre, so that single precision serves."""
        return section.xy - section.xy.mean(0)
