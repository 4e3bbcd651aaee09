"""Gene names: matched by name, and told apart where they are of two kinds."""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

from ..errors import InputError, MissingSlotError
from ..runtime.messages import listed

GENOME = re.compile(r"^(?:GRC[a-z]|hg|mm|rn)\d+[A-Za-z0-9.-]*_+")  # of references of several genomes
VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")
# how names of one gene are made alike, what is seen of the difference, and the remedy
Differences: TypeAlias = Sequence[tuple[Callable[[str], str], str, str]]
DIFFERENCES: Differences = (
    (
        lambda name: GENOME.sub("", name),
        "a genome's prefix",
        f"`adata.var_names = adata.var_names.str.replace(r'{GENOME.pattern}', '', regex=True)` takes it off",
    ),
    (
        lambda name: VERSION.sub(r"\1", name),
        "the version of Ensembl ids",
        f"`adata.var_names = adata.var_names.str.replace(r'{VERSION.pattern}', r'\\1', regex=True)` takes it off",
    ),
    (
        str.upper,
        "upper and lower case, as symbols of mouse and human do",
        "where they are of one species, `adata.var_names = adata.var_names.str.upper()` on both sides makes them alike",
    ),
)


def gene_name_hint(a: Sequence[str], b: Sequence[str]) -> str:
    """Sentence to append to an error where names of `a` and `b` differ in how they are written; else "".

    That is by a genome's prefix, the version of an Ensembl id, case, or by being Ensembl ids on one side alone.
    """
    if not len(a) or not len(b):
        return ""
    in_common = _in_common(a, b, DIFFERENCES)
    if in_common - _in_common(a, b, ()) >= min(len(a), len(b)) / 4:
        parts = [[other for other in DIFFERENCES if other is not one] for one in DIFFERENCES]
        needed = [one for one, rest in zip(DIFFERENCES, parts, strict=True) if _in_common(a, b, rest) < in_common]
        written = {_alike(name, needed): name for name in map(str, b)}
        pairs = ((name, written.get(_alike(name, needed), name)) for name in map(str, a))
        one, other = next((pair for pair in pairs if pair[0] != pair[1]), (a[0], b[0]))
        return (
            f" Names such as {one!r} and {other!r} differ in {', and in '.join(what for _, what, _ in needed)}: "
            + "; ".join(remedy for _, _, remedy in needed)
            + "."
        )
    ensembl = [_mostly_ensembl(names) for names in (a, b)]
    if ensembl[0] == ensembl[1]:
        return ""
    ids, symbols = (a, b) if ensembl[0] else (b, a)
    return (
        f" One side looks like Ensembl ids ({ids[0]}), the other like gene symbols ({symbols[0]}): bring both to one "
        "kind by the column of a table's var that holds the other, for instance `adata.var_names = "
        "adata.var['gene_ids']` for ids or `adata.var_names = adata.var['gene_symbols']` for symbols; then "
        "`adata.var_names_make_unique()`."
    )


def _in_common(a: Sequence[str], b: Sequence[str], differences: Differences) -> int:
    """How many names both sides have, once they are made alike."""
    one, other = ({_alike(str(name), differences) for name in names} for names in (a, b))
    return len(one & other)


def _alike(name: str, differences: Differences) -> str:
    for made_alike, _, _ in differences:
        name = made_alike(name)
    return name


def _mostly_ensembl(names: Sequence[str]) -> bool:
    some = [GENOME.sub("", str(name)) for name in names[:200]]
    return sum(bool(re.match(r"ENS[A-Z]*G\d{6,}", name)) for name in some) > len(some) / 2


def require_unique(names: pd.Index, where: str, remedy: str) -> None:
    """Refuse gene names that occur more than once."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise InputError(f"{where}: gene names occur more than once: {listed(twice)}. {remedy}")


def columns_of(var_names: pd.Index, genes: Sequence[str], where: str) -> np.ndarray:
    """Column of each gene."""
    wanted = pd.Index(genes)
    require_unique(var_names, f"{where}, var_names", "Use `adata.var_names_make_unique()` or sum them first")
    require_unique(wanted, "the genes asked for", "Name each once")
    columns = var_names.get_indexer(wanted)
    missing = wanted[columns < 0]
    if len(missing):
        hint = gene_name_hint(list(missing), list(var_names))
        if len(missing) == len(wanted):
            raise MissingSlotError(
                f"{where}: no gene in common: asked for {listed(missing, 3)}, var_names hold "
                f"{listed(var_names, 3)}.{hint}"
            )
        raise MissingSlotError(
            f"{where}: {len(missing)} of {len(wanted)} genes are not in var_names: {listed(missing)}.{hint}"
        )
    return columns


def predicted_columns(var_names: pd.Index, genes: Sequence[str]) -> np.ndarray:
    """Place of each of the table's genes in `genes`, -1 for those that are not there."""
    predicted = pd.Index(genes)
    require_unique(var_names, "var_names", "Use `adata.var_names_make_unique()` first")
    require_unique(predicted, "the predicted genes", "Name each once")
    columns = predicted.get_indexer(var_names)
    if not len(var_names):
        raise InputError(
            "the table has no genes to write to: `hggep_sc.pp.tile(..., model=model)` gives it those of the model"
        )
    if not (columns >= 0).any():
        raise InputError(
            f"no gene in common: the model predicts {listed(predicted, 3)}, var_names hold "
            f"{listed(var_names, 3)}." + gene_name_hint(list(predicted), list(var_names))
        )
    return columns
