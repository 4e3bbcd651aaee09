"""Tools: ask what is predictable, train, predict, predict many slides, evaluate, cross-validate, find domains."""

from ._cross_validate import cross_validate
from ._domains import domains
from ._evaluate import evaluate
from ._fit import fit
from ._predict import predict
from ._predict_slides import predict_slides
from ._predictability import predictability
from ._top_genes import top_genes

__all__ = ["cross_validate", "domains", "evaluate", "fit", "predict", "predict_slides", "predictability", "top_genes"]
