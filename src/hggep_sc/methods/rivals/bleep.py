"""BLEEP: images and spots in one space, by a contrastive loss; a prediction is the mean of the nearest training spots.

Xie, Pang, Chung, Perciani, MacParland, Wang, Bader: "Spatially resolved gene expression prediction from histology
images via bi-modal contrastive learning", NeurIPS 36, 70626-70637, 2023, arXiv 2306.01859.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Normalize
from ...encoders.card import IMAGENET_MEAN, IMAGENET_STD
from ...errors import InputError, MissingPackageError, ModelError
from ...nn import Batch, Output
from ...nn.resnet import DEPTHS, ResNet
from ...runtime.validators import choice, number
from ...section import open_sections
from ...training.data import SectionData, counts_to_learn
from ...training.run import Run
from .base import RivalConfig, n_features_of
from .by_spot import BySpot, BySpotConfig, BySpotNetwork, HeldOut, load_backbone, with_some_held_out
from .published import Shapes, depths_of, published_network, published_state

REFERENCE = ("reference_expression", "reference_embeddings")
OLDER = {"well_projection.": "spot_projection."}  # of files of before spots were called so
MODES = ("average", "simple", "weighted_average")


@dataclass(frozen=True)
class BLEEPConfig(BySpotConfig):
    """Settings of BLEEP, beside those of all rivals that see spots; the defaults are its authors'.

    Parameters
    ----------
    weight_decay
        Of AdamW.
    temperature
        That similarities are divided by.
    width
        Length of an embedding.
    dropout
        Of both projections.
    n_matches
        Reference spots that a prediction is made of; all, where there are fewer.
    mode
        "average" of the matches; "simple", the first of them; "weighted_average", by exp(-d), d the squared distance of
        the embeddings.
    harmony
        Whether the expression of several training sections is brought together by Harmony, with the section as batch
        (needs `pip install "hggep-sc[bleep]"`). Predictions are then on the corrected scale.
    reference_block
        Reference spots that are compared with at once.
    depths, stem
        Sizes of the ResNet: bottlenecks of each stage, and channels of the first convolution.
    """

    called: ClassVar[str] = "BLEEP's config"

    normalize: Normalize = "library"
    log_base: Literal["e", "10"] = "e"
    epochs: int = 300
    learning_rate: float = 1e-3
    batch_spots: int = 128
    weight_decay: float = 1e-3
    temperature: float = 1.0
    width: int = 256
    dropout: float = 0.1
    n_matches: int = 50
    mode: Literal["average", "simple", "weighted_average"] = "average"
    harmony: bool = True
    reference_block: int = 65536
    depths: tuple[int, ...] = DEPTHS
    stem: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mode", choice("config.mode", self.mode, MODES))
        number("config.temperature", self.temperature, above=0)


class Projection(nn.Module):
    """p = W x + b; LN(dropout(fc(GELU(p))) + p)."""

    def __init__(self, n_in: int, config: BLEEPConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(n_in, config.width)
        self.fc = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in) to (N, width)."""
        p = self.projection(x)
        return self.layer_norm(self.dropout(self.fc(F.gelu(p))) + p)


class ImageEncoder(nn.Module):
    """The ResNet, under the name that it has in the published file."""

    def __init__(self, config: BLEEPConfig) -> None:
        super().__init__()
        self.model = ResNet(config.depths, config.stem)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, features)."""
        return self.model(pixels)


class BLEEPNetwork(BySpotNetwork):
    """I = projection(ResNet(patch)), S = projection(expression); a patch is told by the S that are nearest to its I.

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Number of genes.
    n_features
        Of another encoder in the ResNet's place; None for the ResNet.
    """

    reference_expression: Tensor | None  # (n_reference, n_genes); None before there is one
    reference_embeddings: Tensor | None  # (n_reference, width)

    def __init__(self, config: BLEEPConfig, n_genes: int, n_features: int | None = None) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.config = config
        for name in REFERENCE:
            self.register_buffer(name, None)
        self.n_features = n_features or 0
        if n_features is None:
            self.image_encoder = ImageEncoder(config)
            self.n_features = self.image_encoder.model.n_features
        self.image_projection = Projection(self.n_features, config)
        self.spot_projection = Projection(n_genes, config)

    def encode(self, patches: Tensor) -> Tensor:
        """(N, 1, 3, S, S), 0..255, to (N, n_features); channels blue, green, red, scaled by the means of red first."""
        return self.image_encoder(self.normalised(patches[:, 0].flip(1)))

    def decode(self, features: Tensor, positions: Tensor) -> Output:
        """Predict each spot by the reference spots that are nearest to its own features."""
        embedded = self.image_projection(features)
        return Output(self.retrieved(embedded), embedded, None)

    def retrieved(self, queries: Tensor) -> Tensor:
        """Aggregate the expression of the references of highest cosine similarity, (N, width) to (N, n_genes)."""
        if self.reference_embeddings is None or self.reference_expression is None:
            raise ModelError(
                "BLEEP has no reference spots to predict by: give from_published(reference=) the training sections"
            )
        config, direction = self.config, F.normalize(queries.float(), dim=1)
        n_matches = min(1 if config.mode == "simple" else config.n_matches, len(self.reference_embeddings))
        similarity = direction.new_empty((len(queries), 0))
        places = torch.empty((len(queries), 0), dtype=torch.long, device=queries.device)
        for start in range(0, len(self.reference_embeddings), config.reference_block):
            block = F.normalize(self.reference_embeddings[start : start + config.reference_block], dim=1)
            here = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
            similarity = torch.cat([similarity, direction @ block.T], dim=1)
            similarity, kept = similarity.topk(min(n_matches, similarity.shape[1]), dim=1)
            places = torch.cat([places, here], dim=1).gather(1, kept)
        matched = self.reference_expression[places]  # (N, n_matches, n_genes)
        if config.mode != "weighted_average":
            return matched.mean(1)
        distance = (queries.float()[:, None] - self.reference_embeddings[places]).square().sum(2)
        return (distance.neg().softmax(1)[..., None] * matched).sum(1)

    def refer_to(self, expression: Tensor) -> None:
        """Take spots as reference, by their expression (n, n_genes)."""
        if not len(expression):
            raise InputError("BLEEP needs reference spots with counts, and there are none")
        with torch.no_grad():
            self.reference_expression = expression.float()
            self.reference_embeddings = self.spot_projection(expression.float())

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of similarities between images and spots against the mean of both kinds' own."""
        seen = self.seen(batch, generator)
        spots, images = self.losses(self.image_projection(seen).float(), self.spot_projection(batch.expression).float())
        return {"loss": (spots + images).mean() / 2, "spots": spots.mean(), "images": images.mean()}

    def losses(self, images: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each spot and of each image, both (N,), of embeddings (N, width)."""
        t = self.config.temperature
        logits = spots @ images.T / t
        targets = ((images @ images.T + spots @ spots.T) / (2 * t)).softmax(1)
        of_spots = -(targets * logits.log_softmax(1)).sum(1)
        return of_spots, -(targets.T * logits.T.log_softmax(1)).sum(1)


class BLEEP(BySpot):
    """BLEEP: contrastive learning and retrieval; `hggep_sc.tl.fit(method="bleep")`."""

    method = "bleep"
    configured_by = BLEEPConfig
    whole_batches = True

    @classmethod
    def untrained(cls, config: RivalConfig, n_genes: int, n_features: int | None) -> BLEEPNetwork:
        """Build the network."""
        assert isinstance(config, BLEEPConfig)
        return BLEEPNetwork(config, n_genes, n_features)

    @classmethod
    def optimiser(cls, config: RivalConfig, parameters: Iterable[nn.Parameter]) -> Any:
        """AdamW, at one rate."""
        assert isinstance(config, BLEEPConfig)
        return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)

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
        """Train, and keep the epoch of the least loss of random training spots; all of them are the reference."""
        assert isinstance(config, BLEEPConfig)
        if config.harmony and len(data) > 1:
            data = _brought_together(data)
        network = cls.untrained(config, n_genes, n_features_of(data))
        if not data[0].holds_features:
            load_backbone(network.image_encoder.model, weights, "resnet50_a1")
        learnt, others = with_some_held_out(data, run.seed)
        watch = HeldOut(network, _loss(network), cls.in_turn(others, config), keep=True)
        history = cls.train(network, learnt, config, run, callbacks=[watch] if others else [])
        expression = np.concatenate([part.expression[part.observed] for part in data])
        network.eval().cpu().refer_to(torch.from_numpy(expression))
        return network, history

    @classmethod
    def filled(cls, config: RivalConfig, n_genes: int, n_features: int | None, state: dict[str, Tensor]) -> nn.Module:
        """Build the network from a state dict, with its reference where that is in it."""
        own = {name: value for name, value in state.items() if name not in REFERENCE}
        network = super().filled(config, n_genes, n_features, own)
        for name in REFERENCE:
            setattr(network, name, state.get(name))
        return network

    @classmethod
    def read_published(cls, path: Path, n_genes: int) -> tuple[nn.Module, RivalConfig]:
        """Read a checkpoint of the authors' code, whose names begin with "module."; it has no reference."""
        state = published_state(path, prefix="module.")
        for older, name in OLDER.items():
            state = {entry.replace(older, name, 1): value for entry, value in state.items()}
        return published_network(
            cls, path, state, sizes, bias="spot_projection.projection.weight", axis=1, n_genes=n_genes
        )

    @classmethod
    def from_published(
        cls, path: str | Path, *, genes: Sequence[str], mpp: float | None = None, reference: Any = None
    ) -> Self:
        """Load a checkpoint in the format of the authors' published code; see `Rival.from_published`.

        Parameters
        ----------
        path, genes, mpp
            As there.
        reference
            Sections with counts, as in `hggep_sc.tl.fit`, whose spots predictions are made of; without them the model
            predicts nothing.

        Raises
        ------
        InputError
            If no spot of `reference` has a count.
        """
        model = super().from_published(path, genes=genes, mpp=mpp)
        if reference is not None:
            expression = []
            for section in open_sections(reference, looks=False):
                counts, totals = counts_to_learn(section, model.genes, model.scale)
                expression.append(model.scale.transform(counts, totals)[totals > 0])
            model.network.refer_to(torch.from_numpy(np.concatenate(expression)))
        return model


def sizes(shapes: Shapes) -> BLEEPConfig:
    """Return the settings of a checkpoint."""
    width, _ = shapes["image_projection.projection.weight"]
    depths = depths_of(shapes, "image_encoder.model.layer")
    return BLEEPConfig(width=width, depths=depths, stem=shapes["image_encoder.model.conv1.weight"][0])


def _loss(network: BLEEPNetwork) -> Any:
    return lambda batch: network.loss(batch, torch.Generator())["loss"].item() * len(batch.expression)


def _brought_together(data: list[SectionData]) -> list[SectionData]:
    """Correct the expression of the training spots by Harmony (Korsunsky et al., 2019), the section as its batch."""
    try:
        import harmonypy
    except ModuleNotFoundError:
        raise MissingPackageError(
            'BLEEP brings sections together by harmonypy, which is not installed: pip install "hggep-sc[bleep]", or '
            'leave it out by config={"harmony": False}'
        ) from None
    import pandas as pd

    spots = [part.expression[part.observed] for part in data]
    batches = pd.DataFrame({"section": np.repeat([part.name for part in data], [len(part) for part in spots])})
    found = harmonypy.run_harmony(np.concatenate(spots).astype(np.float64), batches, "section", verbose=False).Z_corr
    corrected = np.asarray(found, dtype=np.float32)
    corrected = corrected if corrected.shape[0] == len(batches) else corrected.T
    ends = np.cumsum([len(part) for part in spots])[:-1]
    result = []
    for part, values in zip(data, np.split(corrected, ends), strict=True):
        expression = part.expression.copy()
        expression[part.observed] = values
        result.append(replace(part, expression=expression))
    return result
