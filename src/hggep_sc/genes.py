"""Which genes a model predicts, chosen on the training sections alone."""

import logging
from collections.abc import Sequence
from numbers import Number

import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ._validators import names, whole_or_none
from .expression import ExpressionScale
from .section import Section, gene_name_hint

logger = logging.getLogger(__name__)

DEFAULT_GENES = 1000


def training_genes(sections: Sequence[Section], genes: Sequence[str] | int | None) -> list[str]:
    """Return the genes to predict: a given list, or the most variable ones that all sections share.

    Parameters
    ----------
    sections
        The training sections.
    genes
        Names, of which a set is sorted; or how many of the most variable genes; None for 1,000, or all where there are
        fewer.

    Raises
    ------
    ValueError
        For duplicate names, or sections without a gene in common.
    KeyError
        For names that a section does not have.
    """
    if genes is None or isinstance(genes, Number):
        return _most_variable(sections, whole_or_none("genes", genes))
    chosen = names("genes", genes)
    if not chosen:
        raise ValueError("genes= is an empty list: name the genes to predict, or give how many")
    if duplicates := pd.Index(chosen)[pd.Index(chosen).duplicated()].unique().tolist():
        raise ValueError(f"genes= names {', '.join(duplicates[:5])} more than once: leave each gene once")
    for section in sections:
        section.counts(chosen)  # refuses what it lacks
    return chosen


def _most_variable(sections: Sequence[Section], n_genes: int | None) -> list[str]:
    """Rank genes by normalised dispersion within sections (scanpy's "seurat"), most often variable first."""
    import scanpy as sc

    shared = sections[0].var_names
    for section in sections[1:]:
        both = shared.intersection(section.var_names, sort=False)
        if both.empty:
            raise ValueError(
                f"sections {sections[0].name!r} and {section.name!r} have no gene in common."
                + gene_name_hint(shared.tolist(), section.var_names.tolist())
            )
        shared = both
    wanted = DEFAULT_GENES if n_genes is None else n_genes
    if n_genes is not None and n_genes > len(shared):
        raise ValueError(f"genes={n_genes}, but the training sections share only {len(shared)} genes")
    if wanted >= len(shared):
        return shared.tolist()
    scale = ExpressionScale()
    expression, names = [], []
    for section in sections:
        counts, library = section.counts(shared.tolist()), section.library()
        kept = library > 0
        expression.append(scale.transform_sparse(counts[kept], library[kept]))
        names += [section.name] * int(kept.sum())
    spots = pd.DataFrame({"section": pd.Categorical(names)}, index=[str(i) for i in range(len(names))])
    if len(spots) < 2:
        raise ValueError("ranking genes by variability needs at least two spots with counts: name the genes by genes=")
    stacked = AnnData(sp.csr_matrix(sp.vstack(expression)), obs=spots, var=pd.DataFrame(index=shared))
    ranked = sc.pp.highly_variable_genes(
        stacked, n_top_genes=wanted, flavor="seurat", batch_key="section", inplace=False
    )
    return shared[ranked["highly_variable"].to_numpy()].tolist()
