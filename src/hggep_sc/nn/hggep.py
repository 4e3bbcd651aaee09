"""The HGGEP network: GEM, ShuffleNetV2 with CBAM at three stages, ViT, HAM, LSTM, head."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cbam import CBAM
from .gem import GEM
from .hypergraph import HAM
from .interface import Batch, CountParameters, Output
from .losses import nb_nll, pearson_loss, zinb_nll
from .shufflenet import ShuffleNetV2
from .transformer import ViT

if TYPE_CHECKING:
    import numpy as np

    from ..config import Config
    from ..section import Section

STAGE_CHANNELS = (96, 192, 1024)  # S3, S4, S5 of ShuffleNetV2 x0.5


class HGGEPNetwork(nn.Module):
    """Patches and positions of a section's spots -> log expression.

    Two presets configure it: `paper` as the paper specifies it, `default` leaner and residual.

    Parameters
    ----------
    config
        Sizes, switches and loss weights.
    n_genes
        Genes predicted.
    """

    pixel_mean: Tensor  # (3, 1, 1), of pixels in 0..1
    pixel_std: Tensor
    gene_mean: Tensor  # (G,)
    basis: Tensor | None  # (components, G)

    def __init__(self, config: "Config", n_genes: int) -> None:
        super().__init__()
        self.config = config
        width, dropout, n_components = config.width, config.dropout, config.n_components
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))
        self.gem = GEM() if config.gem else None
        self.gem_scale = nn.Parameter(torch.zeros(3, 1, 1)) if config.gem and config.residual else None
        self.backbone = ShuffleNetV2(stem_pool=False)
        self.cbam = nn.ModuleList(CBAM(c) if config.cbam else nn.Identity() for c in STAGE_CHANNELS)
        self.reduce = nn.ModuleList(nn.Linear(c * len(config.fields_px), width) for c in STAGE_CHANNELS)
        depth = config.vit_depth if config.vit else 0
        self.vit = nn.ModuleList(ViT(width, depth, config.vit_heads, dropout) for _ in STAGE_CHANNELS)
        self.ham = HAM(width, config.n_neighbors, dropout) if config.ham else None
        if self.ham is not None and config.residual:
            nn.init.zeros_(self.ham.conv2.lin.weight)  # a correction starts at none, as gem_scale does
        self.lstm = nn.LSTM(width, width, config.lstm_layers, batch_first=True) if config.lstm else None
        self.head_norm = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout if config.residual else 0.0))
        self.head = nn.Linear(width, n_components or n_genes)
        self.count_heads = nn.Linear(width, 3 * n_genes) if config.count_weight else None
        # low rank: expression = gene_mean + scores @ basis; full rank: the basis is the identity, left out
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("basis", torch.zeros(n_components, n_genes) if n_components else None)

    def enhance(self, pixels: Tensor) -> Tensor:
        """GEM, (N, 3, S, S) -> (N, 3, S/2, S/2); without it the patch is averaged to the same size."""
        if self.gem is None:
            return F.avg_pool2d(pixels, 2)
        if self.gem_scale is None:
            return self.gem(pixels)
        return F.avg_pool2d(pixels, 2) + self.gem_scale * self.gem(pixels)

    def encode(self, patches: Tensor) -> Tensor:
        """Patches (N, fields, 3, S, S), 0..255 -> three stages per spot, (N, 3, D)."""
        n, n_fields = patches.shape[:2]
        pixels = (patches.flatten(0, 1).float() / 255 - self.pixel_mean) / self.pixel_std
        pixels = pixels.contiguous()  # channels-last strides crash torch 2.13's convolutions on the CPU
        stages = self.backbone(self.enhance(pixels))[1:]  # S3, S4, S5
        tokens = []
        for stage, cbam, reduce in zip(stages, self.cbam, self.reduce, strict=True):
            pooled = cbam(stage).mean((2, 3))
            tokens.append(reduce(pooled.view(n, n_fields * pooled.shape[1])))
        return torch.stack(tokens, dim=1)

    def decode(self, encoded: Tensor, positions: Tensor) -> Output:
        """Stages (N, 3, D) and spot positions (N, 2) -> expression, over the spots of one section."""
        z = [vit(tokens) for vit, tokens in zip(self.vit, encoded.unbind(1), strict=True)]
        if self.ham is not None:
            h_in = torch.stack(z).sum(0)
            h_out = self.ham(h_in, positions)
            z.append(h_in + h_out if self.config.residual else h_out)
        sequence = torch.stack(z, dim=1)
        latent = sequence.mean(1)
        if self.lstm is not None:
            recurrent = self.lstm(sequence)[0].mean(1)
            latent = latent + recurrent if self.config.residual else recurrent
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
    def normalise_pixels(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set what pixels in 0..1 are centred and scaled by, as the backbone's weights expect."""
        self.pixel_mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.pixel_std.copy_(torch.tensor(std).view(3, 1, 1))

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error, counts' likelihood and correlation over the observed spots of a batch.

        Returns
        -------
        The weighted sum under "loss", and each term by its name.
        """
        config, seen = self.config, batch.observed
        out = self(batch.patches, batch.positions)
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
            terms["correlation"] = pearson_loss(out.expression, batch.expression, seen)
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
