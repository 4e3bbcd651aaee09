"""What is noted beside a prediction, in `uns[key]`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..config import Config
from ..errors import ResultWarning
from ..features.patches import fields_of_view
from ..runtime.checks import warn
from ..runtime.messages import warn as warn_of
from ..section.fingerprint import Fingerprint

if TYPE_CHECKING:
    from ..methods.protocols import Model
    from ..section import Section

SUBSET = 0.8  # share of the training sections' genes, below which a library is not the full one
TOLD: dict[str, Any] = {  # what a model may tell beyond what every model does, and what is taken where it does not
    "config": Config(),
    "mpp": None,
    "reduction": 1.0,
    "spacing_um": None,
    "seed": None,
    "genes_by": None,
    "fingerprint": Fingerprint.empty(),
    "embeddings": None,
    "reads_image": True,
    "confidence": None,
    "history": (),
}


def told(model: "Model", name: str) -> Any:
    """Return what a model tells of itself, or what is taken for it."""
    return getattr(model, name, TOLD[name])


def prediction_record(
    model: "Model", sections: "Sequence[Section]", *, layer: str | None = None, library_key: str | None = None
) -> dict[str, Any]:
    """Describe the prediction of sections by a model: the table in `docs/outputs.md`."""
    config, spacing_um = told(model, "config"), told(model, "spacing_um")
    record = {
        "hggep_sc": __version__,
        "model": model.id,
        "method": model.method,
        "genes": np.array(list(model.genes), dtype=object),
        "normalize": model.scale.normalize,
        "target_sum": model.scale.target_sum,
        "log_base": model.scale.log_base,
        "library_genes": told(model, "fingerprint").library_genes,
        "sections": {
            "name": np.array([s.name for s in sections], dtype=object),
            "image": np.array([s.image_name for s in sections], dtype=object),
            "mpp": _numbers(s.mpp for s in sections),
            "mpp_fullres": _numbers(s.mpp_fullres for s in sections),
            "mpp_source": np.array([s.mpp_source for s in sections], dtype=object),
            "spacing_um": _numbers(s.spacing_um for s in sections),
            "role": np.array([_role(model, s) for s in sections], dtype=object),
        },
    }
    optional = {
        "genes_by": told(model, "genes_by"),
        "preset": config.preset if hasattr(model, "config") and isinstance(config, Config) else None,
        "seed": told(model, "seed"),
        "training_spacing_um": None if spacing_um is None else np.array(spacing_um),
        "counts_layer": layer,
        "library_key": library_key,
    }
    return record | {name: value for name, value in optional.items() if value is not None}


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Return float64 with NaN where a value is not known."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _role(model: "Model", section: "Section") -> str:
    reduction = section.reduction / told(model, "reduction")
    field = max(fields_of_view(told(model, "config"), told(model, "mpp"), section.mpp, reduction))
    return told(model, "fingerprint").role(section, model.genes, field)


def warn_of_neighbours(names: Sequence[str]) -> None:
    """Say so where sections, or parts of them, lie beside what was trained on of the same image."""
    if names:
        warn(
            "training_neighbours",
            f"{', '.join(names)}: some of the predicted spots lie beside spots that were trained on, in the same "
            "image: their patches share tissue with patches that were learnt from, so that figures are higher than for "
            "a section that was never seen. Leave the spots between out, or hold out whole sections",
        )


def warn_of_a_subset(n_vars: int, record: Mapping[str, Any], n_genes: int) -> None:
    """Say so where counts are scaled otherwise than in training.

    Parameters
    ----------
    n_vars
        Genes of the object.
    record
        Of its prediction.
    n_genes
        Predicted genes that it has.
    """
    predicted = len(record["genes"])
    if record["normalize"] == "library" and n_vars < SUBSET * record["library_genes"]:
        warn_of(
            f"the object holds {n_vars} genes, those of training {record['library_genes']}: counts are scaled by "
            "a total that is not the full library; evaluate, or give measured=, before subsetting",
            ResultWarning,
        )
    if record["normalize"] == "panel" and n_genes < predicted:
        warn_of(
            f"{predicted - n_genes} of the {predicted} predicted genes are missing: counts are scaled by the "
            "total of the others",
            ResultWarning,
        )


def confidence_of(model: "Model", predictions: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return what `write_prediction` writes of a model's confidence: nothing where it has none."""
    if (confidence := told(model, "confidence")) is None:
        return {}
    uncertainties = [confidence.uncertainty(expression, model.scale) for expression in predictions]
    return {"reliability": confidence.reliability, "uncertainties": uncertainties}
