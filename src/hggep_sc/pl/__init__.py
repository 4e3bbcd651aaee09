"""Plots: genes and domains on the H&E image, scores by method, and the course of a training."""

from ._ablation import ablation
from ._domains import domains
from ._gene_map import gene_map
from ._gene_scatter import gene_scatter
from ._history import history
from ._metrics import metrics
from ._predictability import predictability
from ._top_genes import top_genes

__all__ = ["ablation", "domains", "gene_map", "gene_scatter", "history", "metrics", "predictability", "top_genes"]
