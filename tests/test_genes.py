import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from helpers import section_of
from hggep_sc.genes import DEFAULT_GENES, training_genes

ENSEMBL = [f"ENSG{j:011d}" for j in range(40)]


def section(table, name):
    return section_of(table, np.arange(2.0 * table.n_obs).reshape(-1, 2), name)


def table(genes, seed, n=80):
    """Genes of different means and dispersions, those that vary most being others in each section."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).gamma(1.0, 3.0, len(genes))
    activity = rng.gamma(0.3 + 3 * rng.random(len(genes)), size=(n, len(genes)))
    counts = rng.poisson(means * activity).astype(np.float32)
    return AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=genes))


@pytest.fixture
def tables():
    """Sections with their genes in different order, a few of them in one section alone, and empty spots."""
    names = [f"g{j}" for j in range(130)]
    tables = {"A": table(names[:120], 1), "B": table(names[10:][::-1], 2), "C": table(names[5:125], 3)}
    tables["B"].X = sp.csr_matrix(np.where(np.arange(80)[:, None] < 40, 0, tables["B"].X.toarray()))
    return tables


def sections_of(tables):
    return [section(adata, name) for name, adata in tables.items()]


def scanpys(tables, n):
    parts = {}
    for name, adata in tables.items():
        adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        parts[name] = adata
    whole = anndata.concat(parts, label="section", index_unique="-", join="inner")
    sc.pp.highly_variable_genes(whole, n_top_genes=n, flavor="seurat", batch_key="section")
    return set(whole.var_names[whole.var["highly_variable"]])


@pytest.mark.parametrize("n", [1, 10, 30])
def test_most_variable_against_scanpy(tables, n):
    found = training_genes(sections_of(tables), n)
    assert len(found) == n
    assert set(found) == scanpys(tables, n)
    order = [gene for gene in tables["A"].var_names if gene in set(found)]
    assert found == order  # in the first section's order
    assert all(type(gene) is str for gene in found)


def test_most_variable_of_one_section(tables):
    one = {"A": tables["A"]}
    assert set(training_genes(sections_of(one), 25)) == scanpys(one, 25)


def test_each_section_has_a_say(tables):
    chosen = {name: set(training_genes([section(adata, name)], 20)) for name, adata in tables.items()}
    together = set(training_genes(sections_of(tables), 20))
    assert all(together != genes for genes in chosen.values())


def test_numpy_integers_are_numbers(tables):
    assert training_genes(sections_of(tables), np.int64(10)) == training_genes(sections_of(tables), 10)


def test_all_shared_genes_where_there_are_few(tables):
    shared = [f"g{j}" for j in range(10, 120)]
    assert training_genes(sections_of(tables), None) == shared
    assert training_genes(sections_of(tables), len(shared)) == shared


def test_default_number():
    names = [f"g{j}" for j in range(DEFAULT_GENES + 50)]
    sections = sections_of({"A": table(names, 1, n=30), "B": table(names, 2, n=30)})
    found = training_genes(sections, None)
    assert len(found) == DEFAULT_GENES == 1000
    assert found == training_genes(sections, 1000)


def test_more_genes_than_there_are(tables):
    with pytest.raises(ValueError, match="genes=111, but the training sections share only 110"):
        training_genes(sections_of(tables), 111)


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_below_1(tables, n):
    with pytest.raises(ValueError, match=f"genes={n} must be at least 1"):
        training_genes(sections_of(tables), n)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index])
def test_a_given_list_keeps_its_order(tables, kind):
    wanted = ["g77", "g12", "g50"]
    found = training_genes(sections_of(tables), kind(wanted))
    assert found == wanted
    assert all(type(gene) is str for gene in found)


def test_a_single_name_is_no_list(tables):
    with pytest.raises(TypeError, match="genes='g12' must be a list"):
        training_genes(sections_of(tables), "g12")


def test_an_empty_list(tables):
    with pytest.raises(ValueError, match="genes= is an empty list"):
        training_genes(sections_of(tables), [])


def test_duplicates(tables):
    with pytest.raises(ValueError, match="g12, g50 more than once"):
        training_genes(sections_of(tables), ["g12", "g50", "g12", "g77", "g50"])


def test_duplicates_in_a_section(tables):
    tables["B"].var_names = ["g12" if name == "g50" else name for name in tables["B"].var_names]
    with pytest.raises(ValueError, match=r"'B'.*g12"):
        training_genes(sections_of(tables), ["g12", "g77"])


def test_duplicates_in_a_section_for_a_number(tables):
    tables["B"].var_names = ["g12" if name == "g50" else name for name in tables["B"].var_names]
    with pytest.raises(ValueError, match=r"'B'.*g12"):
        training_genes(sections_of(tables), 10)


def test_missing(tables):
    with pytest.raises(KeyError, match=r"'B'.*1 of 3 genes.*g3"):  # g3 is in A alone
        training_genes(sections_of(tables), ["g12", "g3", "g77"])


def test_nothing_in_common(tables):
    sections = [*sections_of(tables), section(table(["x", "y", "z"], 4), "D")]
    with pytest.raises(ValueError, match="'A' and 'D' have no gene in common") as error:
        training_genes(sections, 10)
    assert "Ensembl" not in str(error.value)


def test_symbols_and_ensembl_ids(tables):
    sections = [*sections_of(tables), section(table(ENSEMBL, 4), "D")]
    with pytest.raises(ValueError, match=r"'A' and 'D' have no gene in common.*Ensembl ids.*gene_ids"):
        training_genes(sections, 10)
    with pytest.raises(KeyError, match=r"no gene in common.*Ensembl ids.*gene_ids"):
        training_genes(sections_of(tables), ENSEMBL[:5])
