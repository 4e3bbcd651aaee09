"""Sets of genes by the names that papers give them, chosen anew in each fold, without its test sections."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..runtime.messages import listed

ALL = "all"
KINDS = ("HEG", "HVG", "HMHVG", "HPG")
EXAMPLES = "'all', 'HEG50', 'HVG50', 'HMHVG300', 'HPG50' (or with other numbers), or a list of genes"
BY = ["fold", "method"]


def chosen_genes(wanted: str | Sequence[str], pcc: pd.DataFrame, training: pd.DataFrame | None) -> pd.MultiIndex:
    """Return which genes count in each fold and for each method.

    Parameters
    ----------
    wanted
        A kind and a number, such as "HEG50"; or names.
    pcc
        Rows of the table of scores: fold, section, method, gene, value. What is chosen is among the genes that they
        name, of each fold and method.
    training
        What `training_statistics` returned; None where that is not known.

    Returns
    -------
    Levels fold, method, gene.

    Raises
    ------
    ValueError
        If there is no such set, too few genes were predicted for it, or what it is chosen by is not known.
    """
    if isinstance(wanted, str):
        kind, n = _parsed(wanted)
        pools = {key: rows["gene"].unique() for key, rows in pcc.groupby(BY, sort=False)}
        for (fold, method), pool in pools.items():
            if len(pool) < n:
                raise ValueError(
                    f"genes={wanted!r} needs {n} genes to choose from, and {method!r} predicts {len(pool)} in fold "
                    f"{fold!r}: predict more (genes= of tl.cross_validate), or ask for fewer, such as "
                    f"'{kind}{max(1, len(pool) // 2)}'"
                )
        scores = _of_other_folds(pcc) if kind == "HPG" else _of_training(wanted, training)
        by_key = {key: part.droplevel([0, 1]) for key, part in scores.groupby(level=BY, sort=False)}
        found = [(*key, gene) for key, pool in pools.items() for gene in _first(kind, by_key[key].reindex(pool), n)]
        return pd.MultiIndex.from_tuples(found, names=[*BY, "gene"])
    known = set(pcc["gene"])
    if not wanted or (missing := [gene for gene in wanted if gene not in known]):
        raise ValueError(
            f"genes= names what was predicted in no fold: {listed(missing)}" if wanted else "genes= names no gene"
        )
    rows = pcc.loc[pcc["gene"].isin(wanted), [*BY, "gene"]].drop_duplicates()
    return pd.MultiIndex.from_frame(rows)


def in_words(wanted: str | Sequence[str]) -> str:
    """Say what `chosen_genes` chooses, and on what."""
    if not isinstance(wanted, str):
        return f"{len(wanted)} named"
    if wanted == ALL:
        return wanted
    return f"{wanted} of the {'other folds' if _parsed(wanted)[0] == 'HPG' else 'training sections'}"


def _parsed(wanted: str) -> tuple[str, int]:
    match = re.fullmatch(r"([A-Z]+)([1-9][0-9]{0,8})", wanted)
    if match is None or match[1] not in KINDS:
        raise ValueError(f"genes={wanted!r} must be {EXAMPLES}")
    return match[1], int(match[2])


def _of_training(wanted: str, training: pd.DataFrame | None) -> pd.DataFrame:
    """Return mean and variance of the genes in training, by fold, method and gene."""
    if training is None:
        raise ValueError(
            f"genes={wanted!r} is chosen on the training sections, of which this result holds nothing: it has to come "
            "from tl.cross_validate, where path= spares running finished folds again"
        )
    return training.set_index([*BY, "gene"])[["mean", "variance"]]


def _of_other_folds(pcc: pd.DataFrame) -> pd.DataFrame:
    """Return the mean correlation of each gene on the test sections of the other folds, by fold, method and gene."""
    folds = pcc["fold"].unique()
    if len(folds) < 2:
        raise ValueError(
            "genes='HPG...' are those that are predicted best in the other folds, and there is only one: run all folds"
        )
    by_fold = pcc.groupby([*BY, "gene"], sort=False)["value"].mean().unstack("fold")
    others = {fold: by_fold.drop(columns=fold).mean(axis=1) for fold in folds}
    return pd.concat(others, names=["fold"]).to_frame("pcc")


def _first(kind: str, scores: pd.DataFrame, n: int) -> Sequence[str]:
    """Return the n genes that a kind of set asks for; of equal ones the first by name, those without a value last."""
    genes = scores.index.to_numpy().astype(str)

    def rank(values: pd.Series) -> np.ndarray:
        order = np.lexsort((genes, -values.fillna(-np.inf).to_numpy()))
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return places

    column = {"HEG": "mean", "HVG": "variance", "HPG": "pcc"}.get(kind)
    if column is not None:
        place = rank(scores[column])
    else:  # both among the first m by mean and by variance, for the smallest m that gives n genes
        by_mean, by_variance = rank(scores["mean"]), rank(scores["variance"])
        place = len(genes) * np.maximum(by_mean, by_variance) + by_mean
    return scores.index[np.argsort(place)[:n]].tolist()
