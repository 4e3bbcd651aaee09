"""ST-Net: a DenseNet-121 whose last layer gives the genes of the spot that a patch shows.

He, Bergenstrahle, Stenbeck, Abid, Andersson, Borg, Maaskola, Lundeberg, Zou: "Integrating spatial gene expression and
breast tumour morphology via deep learning", Nature Biomedical Engineering 4, 827-834, 2020, doi
10.1038/s41551-020-0578-x.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...config import Normalize, plain
from ...features.describe import DIHEDRAL
from ...nn import Batch, Output
from ...nn.densenet import DEPTHS, densenet_features, renamed
from ...runtime.validators import whole_or_none
from ...section import Section
from ...training.data import SectionData, parted
from ...training.run import Run
from ...training.split import leave_out
from .base import RivalConfig, n_features_of
from .by_spot import BySpot, BySpotConfig, BySpotNetwork, HeldOut, load_backbone, stage
from .published import Shapes, depths_of, published_network, published_state

PIXEL_MEAN, PIXEL_STD = (0.54, 0.51, 0.68), (0.25, 0.21, 0.16)  # of the authors' analysis scripts
SEEN = 384  # patches that the channels' mean and deviation are taken over


@dataclass(frozen=True)
class STNetConfig(BySpotConfig):
    """Settings of ST-Net, beside those of all rivals that see spots; the defaults are its authors'.

    Parameters
    ----------
    smoothed
        Whether the network learns log shares, as the authors have it: ln((1 + counts) / (n + total)), where n is the
        number of genes that the total is over. Predictions are then brought to the scale of all methods, log(1 +
        `target_sum` share). A published checkpoint has learnt that. False: it learns the scale itself, by which it is
        compared; `docs/rivals.md` has what either is worth there.
    momentum
        Of stochastic gradient descent.
    inner_folds
        Parts of the training sections, or of their groups, that are left out in turn to choose the epoch. None: all
        epochs are taken, in a fifth of the time.
    pixel_mean, pixel_std
        Of red, green and blue in 0..1, by which pixels are centred and scaled. None: of 384 training patches.
    depths, growth, stem
        Sizes of the DenseNet: layers of each block, channels that a layer adds, and those of the first convolution.
    """

    called: ClassVar[str] = "ST-Net's config"

    normalize: Normalize = "library"
    log_base: Literal["e", "10"] = "e"
    smoothed: bool = False  # the one default that is not the authors'
    epochs: int = 50
    learning_rate: float = 1e-6
    momentum: float = 0.9
    inner_folds: int | None = 4
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    depths: tuple[int, ...] = DEPTHS
    growth: int = 32
    stem: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inner_folds", whole_or_none("config.inner_folds", plain(self.inner_folds), least=2))


class STNetNetwork(BySpotNetwork):
    """expression = W mean(ReLU(DenseNet((pixels - mean) / std))) + b.

    Parameters
    ----------
    config
        Sizes, and what pixels are centred and scaled by.
    n_genes
        Number of genes.
    n_features
        Of another encoder in the DenseNet's place; None for the DenseNet.
    """

    def __init__(self, config: STNetConfig, n_genes: int, n_features: int | None = None) -> None:
        super().__init__(config.pixel_mean or PIXEL_MEAN, config.pixel_std or PIXEL_STD)
        self.n_features = n_features or 0
        if n_features is None:
            self.features, self.n_features = densenet_features(config.depths, config.growth, config.stem)
        self.classifier = nn.Linear(self.n_features, n_genes)

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S), 0..255, to (N, n_features)."""
        return self.features(self.normalised(patches[:, 0])).relu().mean((2, 3))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict each spot from its own features."""
        return Output(self.classifier(features), features, None)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Sum over spots of the squared error, averaged over genes; patches turned and mirrored in training."""
        prediction = self.decode(self.seen(batch, generator), batch.positions).expression
        return {"loss": (prediction - batch.expression).square().sum() / prediction.shape[1]}


class STNet(BySpot):
    """ST-Net: a DenseNet-121 whose last layer gives the genes; `hggep_sc.tl.fit(method="stnet")`."""

    method = "stnet"
    configured_by = STNetConfig
    views = DIHEDRAL  # the mean of the predictions of all symmetries of a patch

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> STNetNetwork:
        """Build the network."""
        assert isinstance(config, STNetConfig)
        return STNetNetwork(config, n_genes, n_features)

    @classmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """Stochastic gradient descent with momentum, at one rate."""
        assert isinstance(config, STNetConfig)
        return torch.optim.SGD(parameters, config.learning_rate, momentum=config.momentum)

    @classmethod
    def target(cls, section: Section, data: SectionData, config: RivalConfig) -> np.ndarray:
        """Return the log of smoothed shares, or expression on the scale."""
        assert isinstance(config, STNetConfig)
        if not config.smoothed:
            return data.expression
        n = len(section.var_names) if config.normalize == "library" else data.counts.shape[1]
        return np.log((1 + data.counts) / (n + data.totals[:, None])).astype(np.float32)

    def on_scale(self, predicted: np.ndarray) -> np.ndarray:
        """Bring log shares to the expression scale."""
        assert isinstance(self.config, STNetConfig)
        return self.scale.of_shares(np.exp(predicted)) if self.config.smoothed else predicted

    @classmethod
    def noting(cls, config: RivalConfig, data: list[SectionData], seed: int) -> RivalConfig:
        """Return the settings with the mean and deviation of the pixels of some training patches."""
        assert isinstance(config, STNetConfig)
        if data[0].holds_features or config.pixel_mean is not None:
            return config
        of = [(part, spot) for part in data for spot in np.flatnonzero(part.observed)]
        drawn = np.random.default_rng(seed).permutation(len(of))[:SEEN]
        pixels = np.stack([of[number][0].seen[of[number][1], 0] for number in drawn])  # uint8 (n, 3, S, S)
        mean, std = pixels.mean((0, 2, 3)) / 255, pixels.std((0, 2, 3)) / 255
        return config.replace(pixel_mean=tuple(map(float, mean)), pixel_std=tuple(map(float, std.clip(1e-3))))

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
        """Choose the epoch by leaving parts of the training sections out, then train on all of them until then."""
        assert isinstance(config, STNetConfig)
        epochs, errors = config.epochs, list[list[float]]()
        if config.inner_folds:
            groups = [part.group for part in data]
            for masks in leave_out([part.xy for part in data], groups, run.seed, config.inner_folds):
                learnt, others = parted(data, masks)
                network = cls._started(learnt, config, n_genes, weights, run.seed)
                watch = HeldOut(network, _squared_error(network), cls.in_turn(others, config))
                called = f"inner fold {len(errors) + 1}"
                cls.train(network, learnt, config, stage(run, len(errors)), callbacks=[watch], called=called)
                errors.append(watch.found)
            if errors:  # none where all spots lie in one block
                epochs = 1 + int(np.argmin(np.sum(errors, axis=0)))
        network = cls._started(data, config, n_genes, weights, run.seed)
        return network, cls.train(network, data, config, stage(run, len(errors)), epochs=epochs)

    @classmethod
    def _started(
        cls, data: list[SectionData], config: STNetConfig, n_genes: int, weights: str | Path | None, seed: int
    ) -> STNetNetwork:
        """Return a network that predicts the mean of the training spots."""
        torch.manual_seed(seed)
        network = cls.untrained(config, n_genes, n_features_of(data))
        if not data[0].holds_features:
            load_backbone(network.features, weights, "densenet121", _of_torchvision)
        mean = np.concatenate([part.expression[part.observed] for part in data]).mean(0)
        with torch.no_grad():
            network.classifier.weight.zero_()
            network.classifier.bias.copy_(torch.from_numpy(mean))
        return network

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a checkpoint of the authors' code: a state dict under "model", with "module." before its names."""
        state = published_state(path, within="model", prefix="module.")
        return published_network(cls, path, state, sizes, bias="classifier.bias", n_genes=n_genes)


def sizes(shapes: Shapes) -> STNetConfig:
    """Return the settings of a checkpoint, and the pixels' mean and deviation of the analysis scripts."""
    stem = shapes["features.conv0.weight"][0]
    growth = shapes["features.denseblock1.denselayer1.conv2.weight"][0]
    depths = depths_of(shapes, "features.denseblock", ".denselayer", first=1)
    return STNetConfig(
        depths=depths, growth=growth, stem=stem, pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD, smoothed=True
    )


def _of_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("features."): value for name, value in renamed(state).items()}


def _squared_error(network: STNetNetwork) -> Any:
    return lambda batch: network.loss(batch, torch.Generator())["loss"].item()
