"""The network as its authors released it, quirk for quirk, so that their checkpoints load.

Nothing here is meant to be good: where the released code departs from the paper, this file follows the code.
One thing is left out: its hypergraph dropout stayed on at inference; here it is on in training alone.
Names of modules are those of the published state dict.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import HypergraphConv

from .interface import Batch, CountParameters, Output, upload
from .losses import distillation, zinb_nll, zinb_parameters
from .shufflenet import ShuffleNetV2
from .spot_transformer import block
from .views import ViewNorm, augment, set_views

if TYPE_CHECKING:
    from ..section import Section

DIM = 1024
HEADS = 16
DROPOUT = 0.2  # of the transformers
POSITIONS = 64  # array coordinates that the position embedding knows: 0..63
NEIGHBOURS, REACH = 8, 2  # spots in the adjacency, and how many array units away at most
HYPEREDGE = 4  # neighbours that a spot chooses
VIEWS = 5
ZINB_WEIGHT, DISTILLATION_WEIGHT = 0.25, 0.5


class CrossDifference(nn.Module):
    """Central-difference convolution of five taps: conv(x) - 0.7 x_0 sum(w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, (1, 5), bias=False)  # never called: holds (up, left, centre, right, down)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, H/2, W/2)."""
        up, left, centre, right, down = self.conv.weight[:, :, 0].unbind(-1)
        nought = torch.zeros_like(centre)
        centre = centre - 0.7 * self.conv.weight.sum((2, 3))
        kernel = torch.stack([nought, up, nought, left, centre, right, nought, down, nought], dim=-1)
        return F.conv2d(x, kernel.view(3, 3, 3, 3), stride=2, padding=1)


class Gradient(nn.Module):
    """GEM with ReLU6(BN(conv)); its padded 1x1 convolution makes 58 x 58 of 56 x 56."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU6())
        self.branch2 = nn.Sequential(CrossDifference(), nn.BatchNorm2d(3), nn.ReLU6())
        self.branch_last = nn.Sequential(nn.Conv2d(6, 3, 1, padding=1), nn.BatchNorm2d(3), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, H/2 + 2, W/2 + 2)."""
        return self.branch_last(torch.cat([self.branch1(x), self.branch2(x)], dim=1))


class ChannelAttention(nn.Module):
    """Sigmoid gate per channel from the sum of what the MLP makes of average and of maximum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared_MLP = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 16, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, C, 1, 1)."""
        average, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self.shared_MLP(average) + self.shared_MLP(maximum))


class SpatialAttention(nn.Module):
    """Sigmoid gate per pixel from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to gates (N, 1, H, W)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv2d(pooled))


class CBAM(nn.Module):
    """Channel attention, then spatial attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(channels)
        self.spatial_attention = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = self.channel_attention(x) * x
        return self.spatial_attention(x) * x


def down(channels_in: int, channels_out: int) -> nn.Sequential:
    """Map of one stage to (N, 1024)."""
    return nn.Sequential(
        CBAM(channels_in),
        nn.BatchNorm2d(channels_in),
        nn.Conv2d(channels_in, channels_out, 1),
        nn.Flatten(),
    )


def vit() -> nn.Sequential:
    """Four blocks over the spots of a section, (..., N, 1024) to the same shape."""
    return nn.Sequential(*(block(DIM, DIM, HEADS, DROPOUT) for _ in range(4)))


class Hypergraph(nn.Module):
    """Two hypergraph convolutions, 1024 -> 512 -> 1024, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = HypergraphConv(DIM, 512)
        self.conv2 = HypergraphConv(512, DIM)
        self.norm = nn.LayerNorm(512)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """(..., N, 1024) to the same shape; index and weights as `hyperedges` returns them."""
        spots = x.flatten(0, -2)  # of all views
        n = len(spots)
        # 4N come in per view, one per pair; HypergraphConv reads the first N, as one per hyperedge
        weight = edge_weight[..., : x.shape[-2]].flatten()
        h = F.relu(self.conv1(spots, edge_index, weight, num_edges=n))
        h = self.dropout(self.norm(h))
        return self.conv2(h, edge_index, weight, num_edges=n).view_as(x) + x


def adjacency(positions: np.ndarray) -> np.ndarray:
    """0/1 matrix (N, N), float32: row i marks the 8 spots nearest to spot i, at most 2 array units away.

    At the tissue's border several spots may be equally near to fill the last of the 8 places. Which of them
    gets it is left to numpy's default sort, as in the published code; without AVX2 it may be another one.

    Parameters
    ----------
    positions
        (N, 2) array coordinates.
    """
    squared = np.square(positions[:, None] - positions[None]).sum(-1).astype(np.float64)
    np.fill_diagonal(squared, -1)  # a spot itself comes first, whatever shares its place
    order = np.argsort(squared, axis=1)[:, 1 : NEIGHBOURS + 1]
    near = np.take_along_axis(squared, order, axis=1) <= REACH**2
    adjacent = np.zeros(squared.shape, dtype=np.float32)
    np.put_along_axis(adjacent, order, near.astype(np.float32), axis=1)
    return adjacent


def hyperedges(features: Tensor, adjacent: Tensor) -> tuple[Tensor, Tensor]:
    """Choose 4 spots for each spot, by the sum of feature distance and adjacency.

    A spot's feature distances and its row of the adjacency are each divided by their sum and added; the 4
    largest are chosen, which are spatial neighbours with large feature distance. Where such a sum is 0 (a
    spot without neighbours, a spot alone) the row stays 0; the published code makes NaN of it.

    Parameters
    ----------
    features
        (..., N, D), in views that know nothing of each other.
    adjacent
        (N, N), 0/1.

    Returns
    -------
    Index (2, views * 4N): row 0 holds the choosing spot and row 1 the chosen one, which HypergraphConv takes for
    the hyperedge's number; spots are counted on from view to view. Weights (..., 4N), float32, without gradient.
    """
    features = features.detach().float()
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / distance.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    total = distance + adjacent / adjacent.sum(1, keepdim=True).clamp_min(1)
    weight, chosen = total.topk(min(HYPEREDGE, len(adjacent)), dim=-1)
    chooser = torch.arange(total.shape[:-1].numel(), device=total.device).view(*total.shape[:-1], 1)
    chosen = chosen + chooser[..., :1, :]  # counted from the view's first spot
    return torch.stack([chooser.expand_as(chosen), chosen]).flatten(1), weight.flatten(-2)


class Sequence(nn.Module):
    """Outputs of an LSTM, without its final states."""

    def forward(self, pair: tuple[Tensor, Any]) -> Tensor:
        """First of the pair that `nn.LSTM` returns."""
        return pair[0]


class PublishedNetwork(nn.Module):
    """HGGEP as released by its authors (Li et al., Briefings in Bioinformatics 25(6), 2024, bbae500).

    Patches are one field of 112 px, in 0..255 without normalisation; positions are array coordinates 0..63.
    A whole section goes through at once, in training as in `decode`: its spots are the tokens of the ViTs.

    Parameters
    ----------
    n_genes
        Number of genes.
    """

    positions_on_host: ClassVar[bool] = True  # where `adjacency` needs them

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.x_embed = nn.Embedding(POSITIONS, DIM)
        self.y_embed = nn.Embedding(POSITIONS, DIM)
        self.conv0 = Gradient()
        trunk = ShuffleNetV2(stem_pool=False)
        self.layer1, self.layer2, self.layer3 = trunk.conv1, trunk.stage2, trunk.stage3
        self.layer4, self.layer5 = trunk.stage4, trunk.conv5
        self.down4 = down(192, 64)
        self.down5 = down(1024, 64)
        self.down6 = down(1024, 1024)
        self.ViT1, self.ViT2, self.ViT3 = vit(), vit(), vit()
        self.jknet = nn.Sequential(nn.LSTM(DIM, DIM, num_layers=4), Sequence())
        self.hgnn = Hypergraph()
        self.gene_head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, n_genes))
        self.mean = nn.Sequential(nn.Linear(DIM, n_genes))
        self.disp = nn.Sequential(nn.Linear(DIM, n_genes))
        self.pi = nn.Sequential(nn.Linear(DIM, n_genes))
        self.coef = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 1))
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                self.set_submodule(name, ViewNorm(module.num_features))

    @property
    def backbone(self) -> nn.ModuleDict:
        """The ShuffleNetV2 inside, under torchvision's names, to load its pretrained weights into."""
        return nn.ModuleDict(
            {
                "conv1": self.layer1,
                "stage2": self.layer2,
                "stage3": self.layer3,
                "stage4": self.layer4,
                "conv5": self.layer5,
            }
        )

    def forward(self, patches: Tensor, positions: Tensor) -> Output:
        """`decode` of `encode`: prediction for a whole section."""
        return self.decode(self.encode(patches), positions)

    def encode(self, patches: Tensor) -> Tensor:
        """Features of each spot from its patch alone.

        Parameters
        ----------
        patches
            (N, 1, 3, 112, 112), 0..255, axes (spot, field, channel, row, column).

        Returns
        -------
        (N, 3, 1024): stage 4, conv5, conv5 max-pooled.
        """
        return self.features(self.pixels(patches)[None])[0]

    @staticmethod
    def pixels(patches: Tensor) -> Tensor:
        """Float patches (N, 3, 112, 112) as the published code crops them: axes (spot, channel, x, y)."""
        return patches[:, 0].transpose(-1, -2).float()

    def features(self, pixels: Tensor) -> Tensor:
        """`encode` of views of what `pixels` returns: (views, N, 3, 112, 112) to (views, N, 3, 1024)."""
        views = len(pixels)
        set_views(self, views)
        stage4 = self.layer4(self.layer3(self.layer2(self.layer1(self.conv0(pixels.flatten(0, 1))))))
        conv5 = self.layer5(stage4)
        pooled = conv5.amax((2, 3), keepdim=True)
        stages = torch.stack([self.down4(stage4), self.down5(conv5), self.down6(pooled)], dim=1)
        return stages.unflatten(0, (views, -1))

    def decode(self, encoded: Tensor, positions: Tensor) -> Output:
        """Prediction for a section from the features of all its spots.

        Parameters
        ----------
        encoded
            (N, 3, 1024), as `encode` returns it.
        positions
            (N, 2) array coordinates (x, y), as `positions` returns them.
        """
        latent = self.latent(encoded, positions)
        return Output(self.gene_head(latent).float(), latent, self.count_parameters(latent))

    def count_parameters(self, latent: Tensor) -> CountParameters:
        """ZINB of the raw counts from `latent`."""
        return zinb_parameters(self.mean(latent), self.disp(latent), self.pi(latent))

    def latent(self, encoded: Tensor, positions: Tensor) -> Tensor:
        """Average the LSTM's outputs over stage 4, conv5, pooled conv5 and hypergraph.

        Parameters
        ----------
        encoded
            (..., N, 3, 1024): a section, or several views of it, each of which sees itself alone.
        positions
            (N, 2) array coordinates.

        Returns
        -------
        (..., N, 1024).
        """
        stages = self.attend(encoded, positions)
        mixed = self.mix(torch.stack(stages).sum(0), positions)
        sequence = torch.stack([*stages, mixed])
        return self.jknet(sequence.flatten(1, -2)).mean(0).view_as(mixed)

    def attend(self, encoded: Tensor, positions: Tensor) -> list[Tensor]:
        """Run each stage with the position embedding added through its ViT: three of (..., N, 1024)."""
        x, y = upload(positions.long(), encoded.device).unbind(1)
        place = self.x_embed(x) + self.y_embed(y)
        vits = (self.ViT1, self.ViT2, self.ViT3)
        return [vit(stage + place) for vit, stage in zip(vits, encoded.unbind(-2), strict=True)]

    def mix(self, features: Tensor, positions: Tensor) -> Tensor:
        """Convolve (..., N, 1024) on the hypergraph of these features and the adjacency."""
        adjacent = upload(torch.from_numpy(adjacency(positions.long().cpu().numpy())), features.device)
        return self.hgnn(features, *hyperedges(features, adjacent))

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """MSE + 0.25 ZINB + 0.5 self-distillation over five augmented views of one section.

        MSE and ZINB look at the spots with counts alone (`batch.observed`), distillation at all spots.

        Returns
        -------
        The weighted sum under "loss", and the terms "mse", "zinb", "distillation".
        """
        seen = batch.observed
        assert batch.patches is not None  # this network is never frozen
        pixels = self.pixels(batch.patches)
        views = torch.cat([pixels[None], augment(pixels, VIEWS, generator)])
        latent = self.latent(self.features(views), batch.positions)
        expression = self.gene_head(latent).float()
        prediction, augmented = expression[0], expression[1:]
        parameters = self.count_parameters(latent[0, seen])
        mse = F.mse_loss(prediction[seen], batch.expression[seen])
        zinb = zinb_nll(batch.counts[seen], *parameters, batch.size_factors[seen])
        agreement = distillation(prediction, augmented, self.coef(latent[1:]))
        total = mse + ZINB_WEIGHT * zinb + DISTILLATION_WEIGHT * agreement
        return {"loss": total, "mse": mse, "zinb": zinb, "distillation": agreement}

    @staticmethod
    def centres(xy: np.ndarray) -> np.ndarray:
        """Pixel positions that patches are centred on: truncated to integers."""
        return np.trunc(xy)

    @staticmethod
    def positions(section: "Section") -> np.ndarray:
        """Array coordinates of the spots, (N, 2): x, y.

        Raises
        ------
        ValueError
            Where the position embedding has no entry for a coordinate.
        """
        places = section.array_xy()
        if ((places < 0) | (places >= POSITIONS)).any():
            raise ValueError(
                f'obs["array_col"], obs["array_row"]: found {places.min()} to {places.max()}, '
                f"but the published network has position embeddings for 0 to {POSITIONS - 1} alone, so "
                "larger arrays (Visium: 128 x 78) are beyond it: use preset 'default' or 'paper'"
            )
        return places
