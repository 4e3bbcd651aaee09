"""DeepPT: features of a frozen ResNet-50, compressed by an autoencoder, and a linear head for the genes.

Hoang, Dinstag, Shulman et al.: "A deep-learning framework to predict cancer treatment response from histopathology
images through imputed transcriptomics", Nature Cancer 5, 1305-1317, 2024, doi 10.1038/s43018-024-00793-2. It predicts a
slide's bulk expression from its tiles; here a spot is a slide of one tile. Training by groups of genes of similar
expression, and anything about treatment, which a patent application (US 2025/0201343) is about, is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...config import Normalize
from ...encoders.card import IMAGENET_MEAN, IMAGENET_STD
from ...metrics import pearson
from ...nn import Batch, Output
from ...nn.resnet import DEPTHS, ResNet
from ...runtime.device import encoder_precision
from ...training.data import SectionData
from ...training.run import Run
from .base import RivalConfig, n_features_of
from .by_spot import BySpot, BySpotConfig, BySpotNetwork, HeldOut, load_backbone, stage, with_some_held_out
from .published import Shapes, depths_of, published_network, published_state

CLASSES = 1000  # of ImageNet, whose unused layer is in the published file
FILES = ("*_model_AE.pth", "model_trained.pth", "ResNet50_IMAGENET1K_V2.pt")


@dataclass(frozen=True)
class DeepPTConfig(BySpotConfig):
    """Settings of DeepPT, beside those of all rivals that see spots; the defaults are its authors'.

    Parameters
    ----------
    autoencoder_epochs
        Epochs of the autoencoder, which is trained first and alone.
    patience
        Epochs without a better mean correlation of the held-out training spots, after which the head's training ends.
        The last epoch is taken, not the best.
    hidden
        Length of the compressed features, and of the head's hidden layer.
    dropout
        Of the head's hidden layer.
    depths, stem
        Sizes of the ResNet: bottlenecks of each stage, and channels of the first convolution.
    """

    called: ClassVar[str] = "DeepPT's config"

    normalize: Normalize = "library"
    log_base: Literal["e", "10"] = "e"
    fields_um: tuple[float, ...] | None = (256.0,)  # 512 px at 20x
    fields_px: tuple[float, ...] = (512.0,)
    epochs: int = 500
    learning_rate: float = 1e-4
    autoencoder_epochs: int = 500
    patience: int = 50
    hidden: int = 512
    dropout: float = 0.2
    depths: tuple[int, ...] = DEPTHS
    stem: int = 64


class DeepPTNetwork(BySpotNetwork):
    """f = ResNet(tile); z = ReLU(E f), trained so that ReLU(D z) = f; expression = W1 (W0 z + b0) + b1.

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Number of genes.
    n_features
        Of another encoder in the ResNet's place; None for the ResNet.
    """

    reconstructs = False  # whether the autoencoder is trained; else the head

    def __init__(self, config: DeepPTConfig, n_genes: int, n_features: int | None = None) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.n_features = n_features or 0
        if n_features is None:
            self.resnet = ResNet(config.depths, config.stem, CLASSES)
            self.n_features = self.resnet.n_features
        self.encoder = nn.Sequential(nn.Linear(self.n_features, config.hidden), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(config.hidden, self.n_features), nn.ReLU())
        self.layer0 = nn.Sequential(nn.Linear(config.hidden, config.hidden), nn.Dropout(config.dropout))
        self.layer1 = nn.Linear(config.hidden, n_genes)

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S), 0..255, to (N, n_features)."""
        return self.resnet(self.normalised(patches[:, 0]))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict each spot from its own features."""
        compressed = self.encoder(features)
        return Output(self.layer1(self.layer0(compressed)), compressed, None)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error: of the features that the autoencoder gives back, or of the expression."""
        assert batch.features is not None  # what the frozen backbone made of the patches
        seen = batch.features.flatten(1)
        if self.reconstructs:
            return {"loss": mse_loss(self.decoder(self.encoder(seen)), seen)}
        return {"loss": mse_loss(self.decode(seen, batch.positions).expression, batch.expression)}


class DeepPT(BySpot):
    """DeepPT: ResNet-50, autoencoder and a linear head; `hggep_sc.tl.fit(method="deeppt")`."""

    method = "deeppt"
    configured_by = DeepPTConfig

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> DeepPTNetwork:
        """Build the network."""
        assert isinstance(config, DeepPTConfig)
        return DeepPTNetwork(config, n_genes, n_features)

    @classmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """Adam, at one rate."""
        return torch.optim.Adam(parameters, config.learning_rate)

    @classmethod
    def learn(
        cls,
        data: list[SectionData],
        config: RivalConfig,
        n_genes: int,
        *,
        weights: str | Path | None,
        run: Run,
    ) -> tuple[nn.Module, list[dict[str, float]]]:
        """Compute the features once, train the autoencoder on them, then the head."""
        assert isinstance(config, DeepPTConfig)
        network = cls.untrained(config, n_genes, n_features_of(data))
        if not data[0].holds_features:
            load_backbone(network.resnet, weights, "resnet50")
            data = [replace(part, seen=cls._encoded(network, part, config, run)) for part in data]
        mean = np.concatenate([part.expression[part.observed] for part in data]).mean(0)
        with torch.no_grad():
            network.layer1.bias.copy_(torch.from_numpy(mean))

        _train_only(network, [network.encoder, network.decoder])
        network.reconstructs = True
        cls.train(network, data, config, stage(run, 0), epochs=config.autoencoder_epochs, called="autoencoder")

        _train_only(network, [network.layer0, network.layer1])
        network.reconstructs = False
        learnt, others = with_some_held_out(data, run.seed)
        watch = HeldOut(network, _minus_correlation(network), cls._whole(others), patience=config.patience)
        return network, cls.train(network, learnt, config, stage(run, 1), callbacks=[watch] if others else [])

    @classmethod
    def _encoded(cls, network: DeepPTNetwork, part: SectionData, config: DeepPTConfig, run: Run) -> np.ndarray:
        """Return what the frozen backbone makes of a section's patches, float32 (n, 1, n_features)."""
        network.to(run.devices.own).eval()
        found = np.empty((len(part.seen), 1, network.n_features), dtype=np.float32)
        with torch.no_grad(), encoder_precision(run.devices.own):
            for start in range(0, len(found), config.batch_spots):
                spots = slice(start, start + config.batch_spots)
                patches = torch.from_numpy(np.ascontiguousarray(part.seen[spots])).to(run.devices.own)
                found[spots, 0] = network.encode(patches).float().cpu().numpy()
        return found

    @classmethod
    def _whole(cls, data: list[SectionData]) -> list[Batch]:
        """Return each section's observed spots as a batch."""
        return [part.batch(np.flatnonzero(part.observed)) for part in data]

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read the authors' three files, in a folder or joined to one."""
        files = [file for pattern in FILES for file in sorted(path.glob(pattern))[:1]] if path.is_dir() else [path]
        state = {name: value for file in files for name, value in _named(published_state(file)).items()}
        return published_network(cls, path, state, sizes, bias="layer1.bias", n_genes=n_genes)


def sizes(shapes: Shapes) -> DeepPTConfig:
    """Return the settings of a checkpoint."""
    hidden, _ = shapes["encoder.0.weight"]
    return DeepPTConfig(hidden=hidden, depths=depths_of(shapes, "resnet.layer"), stem=shapes["resnet.conv1.weight"][0])


def _named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict, of the backbone alone under the names that it has in the whole."""
    return {f"resnet.{name}": value for name, value in state.items()} if "conv1.weight" in state else state


def _train_only(network: nn.Module, parts: list[nn.Module]) -> None:
    network.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)


def _minus_correlation(network: DeepPTNetwork) -> Any:
    """Return what is low where genes correlate over the spots of a batch."""

    def measured(batch: Batch) -> float:
        assert batch.features is not None  # what the frozen backbone made of the patches
        predicted = network.decode(batch.features.flatten(1), batch.positions).expression
        found = pearson(predicted.float().cpu().numpy(), batch.expression.float().cpu().numpy())
        return -float(np.nanmean(found)) if np.isfinite(found).any() else 0.0

    return measured
