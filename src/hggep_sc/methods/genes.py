"""Which genes a model predicts, chosen on the training sections alone."""

from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ..datasets import her2st_panel
from ..errors import InputError, TrainingWarning
from ..metrics import NEIGHBOURS, morans_i
from ..runtime.messages import warn
from ..runtime.validators import choice, names, whole
from ..section import Section, gene_name_hint
from ..section.expression import ExpressionScale

GenesBy = Literal["moran", "dispersion", "mean"]
NAMED = "names"  # in place of a rule, where the user named the genes
PANELS = {"her2st_panel": her2st_panel}  # by the name that `genes=` takes

DEFAULT_GENES = 1000
COUNTED = 0.1  # share of the spots below which a pattern does not repeat in another section: docs/inputs.md
MOST_PLACES = 10_000  # of a section with more spots, counts are added up in square bins
VALUES = 2**24  # spots times genes whose Moran's I is computed at a time


def requested_genes(
    genes: Iterable[str] | str | int | None, genes_by: str = "moran"
) -> tuple[list[str] | int | None, str]:
    """Return what `genes=` asks for in its plain form, and by what rule genes are chosen.

    Parameters
    ----------
    genes
        Names, the name of a panel, how many, or None. A set, which has no order, is taken in alphabetical order.
    genes_by
        The rule.

    Returns
    -------
    A list of names and "names"; or a number or None, and the rule.

    Raises
    ------
    ValueError
        For a number below 1, no names or the same twice, a panel or rule that does not exist, or a rule beside names.
    TypeError
        For what is neither names nor a number.
    """
    rule = choice("genes_by", genes_by, rules := get_args(GenesBy))
    if genes is None:
        return None, rule
    if isinstance(genes, int | Number):
        return whole("genes", genes), rule
    if rule != rules[0]:
        raise ValueError(f"genes_by={rule!r} is for a number of genes, but genes= names them: leave it out")
    return _named(genes), NAMED


def _named(genes: Iterable[str]) -> list[str]:
    """Return the genes that a list, another collection or the name of a panel names."""
    if isinstance(genes, str):
        if genes not in PANELS:
            raise ValueError(
                f"genes={genes!r} is not the name of a panel (there is {', '.join(map(repr, PANELS))}); "
                f"a single gene goes into a list: genes=[{genes!r}]"
            )
        return PANELS[genes]()
    chosen = names("genes", genes)
    if not chosen:
        raise ValueError("genes= is an empty list: name the genes to predict, or give how many")
    if duplicates := pd.Index(chosen)[pd.Index(chosen).duplicated()].unique().tolist():
        raise ValueError(f"genes= names {', '.join(duplicates[:5])} more than once: leave each gene once")
    return chosen


def training_genes(
    sections: Sequence[Section], genes: Iterable[str] | str | int | None, genes_by: str = "moran"
) -> tuple[list[str], str]:
    """Return the genes to predict: those named, or the first by a rule among those that all sections share.

    Genes that are chosen come in the first section's order. Which ones does not depend on the order of sections, spots
    or genes.

    Parameters
    ----------
    sections
        The training sections.
    genes
        Names, or the name of a panel; or how many to choose; None for 1,000, or all where there are fewer.
    genes_by
        The rule, on log expression on library scale: "moran", Moran's I over the nearest spots, mean over sections;
        "dispersion", normalised dispersion (scanpy's "seurat"), among the largest in most sections; "mean", mean over
        spots and sections.

    Returns
    -------
    The names, and by what they were chosen: the rule, or "names".

    Raises
    ------
    ValueError
        For duplicate names, too few genes, or a rule that does not exist.
    InputError
        For sections without a gene in common, or too few spots.
    MissingSlotError
        For names that a section does not have.
    """
    wanted, by = requested_genes(genes, genes_by)
    if isinstance(wanted, list):
        for section in sections:
            section.counts(wanted)  # refuses what it lacks
        return wanted, by
    shared = _shared(sections)
    if wanted is not None and wanted > len(shared):
        raise ValueError(f"genes={wanted}, but the training sections share only {len(shared)} genes")
    wanted = DEFAULT_GENES if wanted is None else wanted
    if wanted >= len(shared):
        return shared.tolist(), by
    rule = {"moran": _by_moran, "dispersion": _by_dispersion, "mean": _by_mean}[by]
    return shared[rule(sections, shared, wanted)].tolist(), by


def _shared(sections: Sequence[Section]) -> pd.Index:
    """Return the genes that all sections have, in the first one's order."""
    for section in sections:
        if numbers := [name for name in section.var_names if not isinstance(name, str)]:
            raise TypeError(
                f"section {section.name!r}: var_names hold what is no name, such as {numbers[0]!r}: set them to the "
                "genes' names, such as `adata.var_names = adata.var['gene_ids']`, or "
                "`adata.var_names = adata.var_names.astype(str)`"
            )
    shared = sections[0].var_names
    for section in sections[1:]:
        both = shared.intersection(section.var_names, sort=False)
        if both.empty:
            raise InputError(
                f"sections {sections[0].name!r} and {section.name!r} have no gene in common."
                + gene_name_hint(shared.tolist(), section.var_names.tolist())
            )
        shared = both
    return shared


def _by_moran(sections: Sequence[Section], shared: pd.Index, wanted: int) -> np.ndarray:
    """Mark the genes of the highest Moran's I, those first that are counted in enough spots.

    A gene that is the same all over a section has none there, and counts as one without a pattern, 0.
    """
    found = [each for section in sections if (each := _morans_i(section, shared)) is not None]
    if not found:
        raise InputError(
            f"choosing genes by Moran's I needs a section of more than {NEIGHBOURS + 1} spots with counts: name the "
            "genes by genes=, or choose them by genes_by='mean'"
        )
    score, share = (_mean(parts) for parts in zip(*found, strict=True))
    counted = share >= COUNTED
    if (enough := int(counted.sum())) < wanted:
        warn(
            f"only {enough} of {len(shared)} genes are counted in at least {100 * COUNTED:.0f} % of the training "
            f"spots: the other {wanted - enough} of genes={wanted} say little about where in the tissue they are; ask "
            "for fewer",
            TrainingWarning,
        )
    return _first(shared, score, wanted, before=counted)


def _by_mean(sections: Sequence[Section], shared: pd.Index, wanted: int) -> np.ndarray:
    """Mark the genes of the highest mean log expression."""
    scale, means = ExpressionScale(), []
    for section in sections:
        expression = scale.transform_sparse(section.counts(shared.tolist()), section.library())
        means.append(np.asarray(expression.mean(axis=0)).ravel())
    return _first(shared, _mean(means), wanted)


def _by_dispersion(sections: Sequence[Section], shared: pd.Index, wanted: int) -> np.ndarray:
    """Mark the genes of the highest normalised dispersion (scanpy's "seurat"), most often variable first."""
    import scanpy as sc

    scale = ExpressionScale()
    expression, names = [], []
    for section in sections:
        counts, library = section.counts(shared.tolist()), section.library()
        kept = library > 0
        expression.append(scale.transform_sparse(counts[kept], library[kept]))
        names += [section.name] * int(kept.sum())
    spots = pd.DataFrame({"section": pd.Categorical(names)}, index=[str(i) for i in range(len(names))])
    if len(spots) < 2:
        raise InputError("ranking genes by variability needs at least two spots with counts: name the genes by genes=")
    stacked = AnnData(sp.csr_matrix(sp.vstack(expression)), obs=spots, var=pd.DataFrame(index=shared))
    ranked = sc.pp.highly_variable_genes(
        stacked, n_top_genes=wanted, flavor="seurat", batch_key="section", inplace=False
    )
    return ranked["highly_variable"].to_numpy()


def _mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over sections, to the bit the same in any order of them."""
    return np.sort(parts, axis=0).mean(axis=0)


def _first(shared: pd.Index, score: np.ndarray, wanted: int, before: np.ndarray | None = None) -> np.ndarray:
    """Mark the genes of the highest score, of equal ones the first by name; those marked `before` all others."""
    last = np.zeros(len(shared), dtype=bool) if before is None else ~before
    order = np.lexsort((shared.to_numpy().astype(str), -score, last))
    chosen = np.zeros(len(shared), dtype=bool)
    chosen[order[:wanted]] = True
    return chosen


def _morans_i(section: Section, genes: pd.Index) -> tuple[np.ndarray, np.ndarray] | None:
    """Return Moran's I of log expression, and in which share of the places each gene is counted.

    A place is a spot, or in a section of more than `MOST_PLACES` a square bin of spots, whose counts are added up. None
    where all are neighbours of all, so that Moran's I is the same for every gene.
    """
    library = section.library()
    seen = np.flatnonzero(library)
    centres, place = _places(section.xy[seen])
    if len(centres) <= NEIGHBOURS + 1:
        return None
    members = sp.csr_matrix((np.ones(len(seen)), (place, seen)), shape=(len(centres), len(library)))
    totals, counts = members @ library, sp.csc_matrix(members @ section.counts(genes.tolist()))
    counts.eliminate_zeros()
    scale, values = ExpressionScale(), []
    step = max(1, VALUES // len(centres))
    for start in range(0, len(genes), step):
        expression = scale.transform_sparse(counts[:, start : start + step], totals)
        values.append(np.nan_to_num(morans_i(expression, centres)))  # 0 for constant genes
    return np.concatenate(values), np.diff(counts.indptr) / len(centres)


def _places(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centres of places, in an order that does not depend on that of the spots, and the place of each spot."""
    cells = xy
    if len(xy) > MOST_PLACES:
        extent = np.ptp(xy, axis=0)
        side = max(np.sqrt(extent.prod() / MOST_PLACES), extent.max() / MOST_PLACES)
        cells = np.floor((xy - xy.min(axis=0)) / side)
    centres, place = np.unique(cells, axis=0, return_inverse=True)
    return centres, place.ravel()
