import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import hggep_sc as hggep
from helpers import WAIT, section_of, slow_moran
from hggep_sc.methods import genes as module
from hggep_sc.methods.genes import COUNTED, DEFAULT_GENES, requested_genes
from hggep_sc.section import open_sections

ENSEMBL = [f"ENSG{j:011d}" for j in range(40)]


def training_genes(sections, genes, genes_by="moran"):
    return module.training_genes(sections, genes, genes_by)[0]


def section(table, name):
    return section_of(table, np.random.default_rng(len(name) + table.n_obs).random((table.n_obs, 2)) * 1e4, name)


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


def log_expression(adata):
    """Dense, of the spots that have counts."""
    counts = adata.X.toarray().astype(float)
    totals = counts.sum(1)
    return np.log1p(counts[totals > 0] / totals[totals > 0, None] * 1e4)


def morans(sections):
    """(sections, genes) of the genes that all have, and the share of spots that each is counted in."""
    shared = [gene for gene in sections[0].var_names if all(gene in s.var_names for s in sections)]
    values, shares = [], []
    for s in sections:
        kept = np.asarray(s.table.X.sum(1)).ravel() > 0
        expression = log_expression(s.table[:, :])[:, s.var_names.get_indexer(shared)]
        values.append([slow_moran(x, s.xy[kept]) if np.ptp(x) else 0.0 for x in expression.T])
        shares.append((expression > 0).mean(0))
    return shared, np.array(values), np.array(shares)


@pytest.mark.parametrize("n", [1, 10, 30])
def test_morans_i_against_the_definition(tables, n):
    sections = sections_of(tables)
    shared, values, shares = morans(sections)
    assert shares.mean(0).min() > COUNTED
    best = np.argsort(-values.mean(0))[:n]
    found = training_genes(sections, n)
    assert set(found) == {shared[j] for j in best}
    assert found == [gene for gene in shared if gene in set(found)]  # in the first section's order
    assert all(type(gene) is str for gene in found)


def patterned(strength=1.0, n=90, n_genes=40, seed=0):
    """Counts and places of spots; the first ten genes rise or fall over the tissue, g0 the most."""
    rng = np.random.default_rng(seed)
    xy = rng.random((n, 2)) * 1e4
    slope = np.zeros(n_genes)
    slope[:10] = strength * np.linspace(3, 2, 10) * np.tile([1, -1], 5)
    counts = rng.poisson(9 * np.exp(slope * (xy[:, :1] / 1e4 - 0.5)))
    counts[:, 20:] *= rng.random((n, n_genes - 20)) < 0.3  # the last vary more, wherever the spots are
    names = [f"g{j}" for j in range(n_genes)]
    return AnnData(sp.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=names)), xy


def test_genes_that_vary_over_the_tissue():
    table, xy = patterned()
    sections = [section_of(table, xy, "A")]
    assert set(training_genes(sections, 10)) == {f"g{j}" for j in range(10)}
    assert len(set(training_genes(sections, 10, "dispersion")) & {f"g{j}" for j in range(10)}) <= 3


def test_by_mean(tables):
    sections = sections_of({name: tables[name] for name in "AC"})
    shared = [gene for gene in tables["A"].var_names if gene in tables["C"].var_names]
    means = [
        pd.Series(log_expression(tables[name]).mean(0), tables[name].var_names)[shared].to_numpy() for name in "AC"
    ]
    assert set(training_genes(sections, 12, "mean")) == {shared[j] for j in np.argsort(-np.mean(means, 0))[:12]}


@pytest.mark.parametrize("by", ["moran", "dispersion", "mean"])
def test_order_of_sections_spots_and_genes_does_not_matter(tables, by):
    rng = np.random.default_rng(0)
    expected = set(training_genes(sections_of(tables), 25, by))
    turned = []
    for each in reversed(sections_of(tables)):
        spots, genes = rng.permutation(each.table.n_obs), rng.permutation(each.table.n_vars)
        turned.append(section_of(each.table[spots][:, genes].copy(), each.xy[spots], each.name))
    assert set(training_genes(turned, 25, by)) == expected


@pytest.mark.parametrize("by", ["moran", "mean"])
def test_equal_genes_go_by_name(by):
    table, xy = patterned()
    table = table[:, [0] * 4 + [30, 31]]
    table = AnnData(table.X, var=pd.DataFrame(index=["d", "a", "c", "b", "y", "x"]))
    assert training_genes([section_of(table, xy, "A")], 2, by) == ["a", "b"]


def test_a_gene_counted_in_few_spots_comes_after_the_others(warned):
    """It lies in one corner, so that its Moran's I is the highest of all."""
    table, xy = patterned(strength=0.5)
    counts = table.X.toarray()
    corner = np.argsort(xy.sum(1))[:8]  # fewer than a tenth of 90
    counts[:, 5] = 0
    counts[corner, 5] = 9
    table.X = sp.csr_matrix(counts)
    sections = [section_of(table, xy, "A")]
    shared, values, _ = morans(sections)
    assert shared[np.argmax(values)] == "g5"
    assert "g5" not in training_genes(sections, 9)
    assert not warned.messages
    counts[np.argsort(xy.sum(1))[:9], 5] = 9  # a tenth
    table.X = sp.csr_matrix(counts)
    assert "g5" in training_genes(sections, 1)


def test_more_genes_than_are_counted_often(warned):
    table, xy = patterned()
    counts = table.X.toarray()
    counts[3:, 10:] = 0
    table.X = sp.csr_matrix(counts)
    found = training_genes([section_of(table, xy, "A")], 12)
    assert set(found) > {f"g{j}" for j in range(10)}
    assert "only 10 of 40 genes are counted in at least 10 % of the training spots" in warned.text


@pytest.mark.parametrize("n", [1, 7])
def test_too_few_spots_for_neighbours(tables, n):
    few = section(tables["A"][:n].copy(), "few")
    with pytest.raises(ValueError, match=r"more than 7 spots with counts.*genes_by='mean'"):
        training_genes([few], 10)
    assert len(training_genes([few], 10, "mean")) == 10
    whole = section(tables["A"], "A")
    assert training_genes([few, whole], 10) == training_genes([whole], 10)  # the few say nothing, and do no harm


def test_large_sections_are_looked_at_in_bins(monkeypatch):
    """Spots of a grid, four to a bin: the genes are those of the bins, counts added up."""
    rng = np.random.default_rng(3)
    side = 24
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 10.0
    counts = rng.poisson(np.exp(np.outer(xy[:, 0] / 240, np.linspace(-2, 2, 30))))
    names = [f"g{j}" for j in range(30)]
    table = AnnData(sp.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=names))
    place = np.floor(xy / (230 / 12)).astype(int) @ [100, 1]
    _, place = np.unique(place, return_inverse=True)
    added = np.zeros((place.max() + 1, 30), dtype=np.float32)
    np.add.at(added, place, counts)
    middle = np.stack([np.bincount(place, x) / np.bincount(place) for x in xy.T], 1)
    binned = section_of(AnnData(sp.csr_matrix(added), var=table.var), np.floor(middle / (230 / 12)), "A")
    expected = module._morans_i(binned, table.var_names)
    monkeypatch.setattr(module, "MOST_PLACES", 144)
    found = module._morans_i(section_of(table, xy, "A"), table.var_names)
    np.testing.assert_allclose(found, expected)
    assert len(added) <= 169


def test_blocks_of_genes_give_the_same(tables, monkeypatch):
    sections = sections_of(tables)
    expected = training_genes(sections, 20)
    monkeypatch.setattr(module, "VALUES", 80 * 50)
    monkeypatch.setattr("hggep_sc.metrics.AT_ONCE", 80 * 20)
    assert training_genes(sections, 20) == expected


def test_squidpy_says_nothing():
    """Neither its warnings on import nor its log reach the user."""
    code = """
import logging
logging.basicConfig(level=logging.INFO)
import numpy as np, pandas as pd, scipy.sparse as sp
from anndata import AnnData
import hggep_sc.methods.genes as genes
from helpers import section_of
counts = np.random.default_rng(0).poisson(1.0, (60, 20)).astype(np.float32)
counts[:, :3] = 0
table = AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=[str(j) for j in range(20)]))
section = section_of(table, np.random.default_rng(1).random((60, 2)), "A")
print(len(genes.training_genes([section], 5)[0]))
"""
    code = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r}){code}"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True, timeout=WAIT
    )
    assert done.stdout == "5\n"
    said = [line for line in done.stderr.splitlines() if "squidpy" in line or "docrep" in line or "constant" in line]
    assert said == []


@pytest.mark.parametrize("n", [1, 10, 30])
def test_dispersion_against_scanpy(tables, n):
    found = training_genes(sections_of(tables), n, "dispersion")
    assert len(found) == n
    assert set(found) == scanpys(tables, n)
    order = [gene for gene in tables["A"].var_names if gene in set(found)]
    assert found == order  # in the first section's order
    assert all(type(gene) is str for gene in found)


def test_dispersion_of_one_section(tables):
    one = {"A": tables["A"]}
    assert set(training_genes(sections_of(one), 25, "dispersion")) == scanpys(one, 25)


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


def test_numbers_are_no_names(tables):
    """As an index set on `var` itself leaves them: a model of them could not be saved."""
    tables["B"].var.index = pd.RangeIndex(tables["B"].n_vars)
    with pytest.raises(TypeError, match=r"section 'B': var_names hold what is no name, such as 0.*astype\(str\)"):
        training_genes(sections_of(tables), 5)


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
    with pytest.raises(ValueError, match=r"genes='g12' is not the name of a panel.*'her2st_panel'.*genes=\['g12'\]"):
        training_genes(sections_of(tables), "g12")


def test_a_panel_by_name():
    panel = hggep.datasets.her2st_panel()
    assert requested_genes("her2st_panel") == (panel, "names")
    assert requested_genes(panel) == (panel, "names")


def test_a_set_has_no_order_of_its_own(tables):
    assert training_genes(sections_of(tables), {"g77", "g12", "g50"}) == ["g12", "g50", "g77"]


@pytest.mark.parametrize("genes", [True, 7.5, object()])
def test_neither_names_nor_a_number(genes):
    with pytest.raises(TypeError, match=r"must be a list of names|must be a whole number"):
        requested_genes(genes)


def test_rules_by_name(tables):
    with pytest.raises(ValueError, match=r"genes_by='variance' is not known.*'moran', 'dispersion', 'mean'"):
        training_genes(sections_of(tables), 5, "variance")
    for named in (["g12"], "her2st_panel"):
        with pytest.raises(ValueError, match="genes_by='mean' is for a number of genes"):
            training_genes(sections_of(tables), named, "mean")


def test_the_rule_is_returned(tables):
    sections = sections_of(tables)
    assert module.training_genes(sections, 3, "dispersion")[1] == "dispersion"
    assert module.training_genes(sections, None)[1] == "moran"
    assert module.training_genes(sections, ["g12"])[1] == "names"


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


@pytest.mark.parametrize("by", ["moran", "dispersion", "mean"])
def test_the_rule_travels_with_the_model(sections, tmp_path, by):
    """From `tl.fit` to the model, the folder it is saved in, and what is noted beside a prediction."""
    test = sections.pop("S3")
    model = hggep.tl.fit(sections, method="gene_mean", genes=7, genes_by=by, progress=False)
    assert model.genes == training_genes(open_sections(sections), 7, by)
    model.save(tmp_path / "model")
    model = hggep.baselines.GeneMean.load(tmp_path / "model")
    assert model.genes_by == by
    hggep.tl.predict(test, model, progress=False)
    assert test.uns["hggep"]["genes_by"] == by


def test_the_network_notes_the_rule(trained, tmp_path):
    trained.save(tmp_path / "model")
    assert hggep.HGGEP.load(tmp_path / "model").genes_by == trained.genes_by == "moran"


def test_named_genes_have_no_rule(sections):
    named = hggep.tl.fit(sections, method="gene_mean", genes=sections["S1"].var_names[:2], progress=False)
    assert named.genes_by == "names"


def test_folds_choose_on_their_own_training_sections(sections, tmp_path):
    """And a stored fold of another rule is another fold."""
    how = {"methods": ["gene_mean"], "genes": 7, "normalize": "library", "path": tmp_path, "progress": False}
    for by in ("moran", "dispersion", "moran"):
        cv = hggep.tl.cross_validate(sections, genes_by=by, **how)
        for fold in sections:
            training = open_sections({name: section for name, section in sections.items() if name != fold})
            assert set(cv.table.query("fold == @fold")["gene"]) == set(training_genes(training, 7, by))
    assert len(list(tmp_path.glob("*.h5ad"))) == 6


def test_what_a_test_section_holds_is_not_looked_at(sections):
    """A gene that rises over the section that is left out, and nowhere else."""
    left_out = sections["S3"]
    rising = np.rint(left_out.obsm["spatial"][:, 0]).astype(np.float32)
    counts = left_out.X.toarray()
    models = []
    for gene in (None, *left_out.var_names[:10]):
        changed = counts.copy()
        if gene is not None:
            changed[:, left_out.var_names.get_loc(gene)] = rising
        sections["S3"].X = sp.csr_matrix(changed)
        cv = hggep.tl.cross_validate(sections, methods=["gene_mean"], genes=5, only=["S3"], progress=False)
        models.append(cv.folds["model"].item())
    assert len(set(models)) == 1


def test_a_panel_whose_genes_are_missing(sections):
    for call in (hggep.tl.fit, hggep.tl.cross_validate):
        with pytest.raises(KeyError, match=r"'S1': no gene in common.* and 782 more"):
            call(sections, genes="her2st_panel", progress=False)
