"""Any regressor of scikit-learn's on any encoder's features, as a method."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from torch import nn

from ..features.encoders import SHUFFLENET
from ..runtime.device import resolve_device, threads_of_torch
from ..section import Section
from ..training.selection import Training
from .baselines import Baseline, BaselineConfig
from .genes import GenesBy


class RegressorModel(Baseline):
    """What `Regressor` fits; a `hggep_sc.baselines.Baseline` with `estimator`, scikit-learn's, fitted."""

    method = "regressor"

    def __init__(self, config: BaselineConfig, estimator: Any, **known: Any) -> None:
        super().__init__(config, **known)
        self.estimator = estimator

    @property
    def n_features(self) -> int:
        return int(self.estimator.n_features_in_)

    @classmethod
    def learn(cls, training: Training, config: BaselineConfig) -> dict[str, np.ndarray]:
        raise TypeError("a RegressorModel is fitted by hggep_sc.methods.Regressor(estimator)")

    def _respond(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(self.estimator.predict(features)).reshape(len(features), -1), None

    def save(self, path: str | Path, *, overwrite: bool = False) -> NoReturn:
        """Refuse: an estimator has no form on disk but pickle.

        Raises
        ------
        TypeError
            Always; it says how to keep the model.
        """
        raise TypeError(
            f"a {type(self.estimator).__name__} cannot be saved without pickle, which runs whatever code it holds when "
            "it is read, and hggep_sc writes none: keep the model yourself, by joblib.dump(model, file) or skops, and "
            "read it only where you trust the file"
        )

    @classmethod
    def load(cls, path: str | Path, *, encoder: nn.Module | str | Path | None = None) -> NoReturn:
        """Refuse, as nothing is saved.

        Raises
        ------
        TypeError
            Always; see `save`.
        """
        raise TypeError("hggep_sc saves no estimator of scikit-learn's: read it as you wrote it, as by joblib.load")


class Regressor:
    """A method that fits a regressor of scikit-learn's to log expression, on features of a frozen encoder.

    Features and targets are those of the baselines: standardised within the section, and less the section's mean. The
    estimator sees nothing but the training sections; it is cloned for each fit, and the seed goes into every
    `random_state`.

    Parameters
    ----------
    estimator
        It predicts several targets at once, as PLS, random forests and kernel ridge do;
        `sklearn.multioutput.MultiOutputRegressor` makes one of another.
    name
        What it is called.
    """

    configured_by: ClassVar[type[BaselineConfig]] = BaselineConfig
    takes: ClassVar[frozenset[str]] = Baseline.takes

    def __init__(self, estimator: Any, name: str = "regressor") -> None:
        if not (hasattr(estimator, "fit") and hasattr(estimator, "predict") and hasattr(estimator, "get_params")):
            raise TypeError(f"estimator={estimator!r} must be a regressor of scikit-learn's, with fit and predict")
        self.estimator, self.method = estimator, name

    def __repr__(self) -> str:
        return f"Regressor({self.estimator!r}, name={self.method!r})"

    @threads_of_torch()
    def fit(
        self,
        sections: Sequence[Section],
        config: BaselineConfig,
        *,
        genes: Iterable[str] | str | int | None = None,
        genes_by: GenesBy = "moran",
        encoder: str | nn.Module = SHUFFLENET,
        weights: str | Path | None = "pretrained",
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
    ) -> RegressorModel:
        """Fit to sections; see `hggep_sc.tl.fit` for the parameters."""
        from sklearn.base import clone

        training, known = RegressorModel.gathered(
            sections, config, genes, genes_by, encoder, weights, seed, resolve_device(device), progress
        )
        estimator = clone(self.estimator)
        random = [name for name in estimator.get_params() if name.split("__")[-1] == "random_state"]
        estimator.set_params(**dict.fromkeys(random, known["seed"])).fit(training.features, training.targets)
        # a hash of what it says of the training spots stands for what it has learnt, which has no names
        said = hashlib.sha256(np.ascontiguousarray(estimator.predict(training.features)).tobytes()).digest()
        arrays = {"gene_mean": known.pop("gene_mean"), "estimator": np.frombuffer(said, dtype=np.uint8).copy()}
        model = RegressorModel(config, estimator, arrays=arrays, **known)
        model.method = self.method  # type: ignore[misc]  # the name that the user gave it
        return model

    load = RegressorModel.load
