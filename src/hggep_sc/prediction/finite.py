"""NaN and infinity are refused in what a model holds and in what it predicts."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ..errors import ModelError


def require_finite_model(entries: Mapping[str, Tensor]) -> None:
    """Refuse a model by what it has learnt, by name.

    Raises
    ------
    ModelError
        If an entry is NaN or infinite somewhere.
    """
    for name, values in entries.items():
        if not values.isfinite().all():
            raise ModelError(
                f"what the model has learnt is NaN or infinite (entry {name!r}), and so would its predictions be: fit "
                "it to counts and embeddings without values far out of the ordinary"
            )


def require_finite_prediction(section: str, *predicted: np.ndarray) -> None:
    """Refuse what was predicted of a section, arrays of a row per spot.

    Raises
    ------
    ModelError
        If a value is NaN or infinite.
    """
    for values in predicted:
        with np.errstate(invalid="ignore"):
            sums = values.sum(axis=1, dtype=np.float64)  # beside a large array, not another as large
        if lost := int(np.count_nonzero(~np.isfinite(sums))):
            raise ModelError(
                f"section {section!r}: what the model predicts at {lost} of {len(sums)} spots is NaN or infinite, and "
                "nothing is written: load or fit the model anew, and look for values far out of the ordinary in the "
                "section's embeddings"
            )
