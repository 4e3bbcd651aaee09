import numpy as np
import pandas as pd
import pytest

from hggep_sc.cross_validation.gene_sets import chosen_genes

GENES = [f"g{i}" for i in range(8)]
MEAN = [8, 7, 6, 5, 4, 3, 2, 1]
VARIANCE = [1, 5, 7, 8, 6, 4, 3, 2]


def rows(values):
    """{(fold, method): values of genes} as rows of the table of scores."""
    return pd.DataFrame(
        [
            (*where, where[0], gene, value)
            for where, of in values.items()
            for gene, value in zip(GENES, of, strict=False)
        ],
        columns=["fold", "method", "section", "gene", "value"],
    )


@pytest.fixture
def pcc():
    rng = np.random.default_rng(0)
    return rows({(fold, method): rng.random(8) for fold in "ABC" for method in "mn"})


@pytest.fixture
def training(pcc):
    """In fold B the ranking by mean is the other way round."""
    parts = []
    for fold, method in pcc[["fold", "method"]].drop_duplicates().itertuples(index=False):
        mean = MEAN[::-1] if fold == "B" else MEAN
        parts.append(pd.DataFrame({"gene": GENES, "mean": mean, "variance": VARIANCE, "fold": fold, "method": method}))
    return pd.concat(parts, ignore_index=True)


def chosen(*args):
    found = chosen_genes(*args).to_frame(index=False).groupby(["fold", "method"])["gene"]
    return {key: set(genes) for key, genes in found}


def test_sets_of_the_training_sections(pcc, training):
    expressed = chosen("HEG3", pcc, training)
    assert expressed["A", "m"] == expressed["C", "n"] == {"g0", "g1", "g2"}
    assert expressed["B", "m"] == {"g5", "g6", "g7"}
    assert set(map(frozenset, chosen("HVG2", pcc, training).values())) == {frozenset({"g3", "g2"})}


@pytest.mark.parametrize("n", range(1, 9))
def test_high_mean_and_high_variance_is_the_smallest_intersection_that_is_large_enough(pcc, training, n):
    by_mean = np.argsort(MEAN)[::-1]
    by_variance = np.argsort(VARIANCE)[::-1]
    for m in range(1, 9):
        both = {GENES[i] for i in set(by_mean[:m]) & set(by_variance[:m])}
        if len(both) >= n:
            break
    found = chosen(f"HMHVG{n}", pcc, training)["A", "m"]
    assert len(found) == n
    assert found <= both
    assert len(both) - n <= 1  # one at a time, or two, of which that with the higher mean is taken


def test_highly_predictive_genes_are_chosen_on_the_other_folds():
    values = {("A", "m"): [0.9, 0.1, 0.2, 0.3], ("B", "m"): [0.1, 0.8, 0.7, np.nan], ("C", "m"): [0.1, 0.2, 0.9, 0.3]}
    found = chosen("HPG1", rows(values), None)
    assert found == {("A", "m"): {"g2"}, ("B", "m"): {"g2"}, ("C", "m"): {"g0"}}
    nothing = rows({(fold, "mean"): [np.nan] * 4 for fold in "AB"})
    assert chosen("HPG2", nothing, None)["A", "mean"] == {"g0", "g1"}  # none is better than another


def test_named_genes(pcc):
    assert chosen(["g5", "g1"], pcc, None)["B", "n"] == {"g1", "g5"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "HEG50",
            r"genes='HEG50' needs 50 genes to choose from, and 'm' predicts 8 in fold 'A': predict more .*'HEG4'",
        ),
        ("TOP50", r"genes='TOP50' must be 'all', 'HEG50', 'HVG50', 'HMHVG300', 'HPG50' \(or with other numbers\)"),
        ("HEG0", "genes='HEG0' must be"),
        (["g1", "TP53"], "genes= names what was predicted in no fold: 'TP53'"),
        ([], "genes= names no gene"),
    ],
)
def test_what_cannot_be_chosen_is_refused(pcc, training, wanted, message):
    with pytest.raises(ValueError, match=message):
        chosen_genes(wanted, pcc, training)


def test_what_it_is_chosen_by_has_to_be_known(pcc):
    with pytest.raises(ValueError, match=r"chosen on the training sections, of which this result holds nothing.*path="):
        chosen_genes("HEG2", pcc, None)
    with pytest.raises(ValueError, match=r"predicted best in the other folds, and there is only one"):
        chosen_genes("HPG2", pcc[pcc["fold"] == "A"], None)
