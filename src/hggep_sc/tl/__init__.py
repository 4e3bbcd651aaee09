"""Tools: train, predict, evaluate."""

from ._evaluate import evaluate
from ._fit import fit
from ._predict import predict

__all__ = ["evaluate", "fit", "predict"]
