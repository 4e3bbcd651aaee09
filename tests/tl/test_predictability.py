"""What a probe reaches of each gene, on sections whose predictable genes are known."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from scipy.ndimage import gaussian_filter

import hggep_sc as hggep
from helpers import CPU, assert_same
from hggep_sc.evaluation.spatial_null import moved_maps
from hggep_sc.metrics import noise_ceiling

SIDE = 16
PLANTED, NOISE = [f"P{i:02d}" for i in range(12)], [f"N{i:02d}" for i in range(60)]
HOW = {"encoder": "X_seen", "genes": PLANTED + NOISE, **CPU}


def smooth(rng, n):
    """(SIDE ** 2, n) smooth fields of unit variance, each by itself."""
    margin = 8  # without it, edges would be smoother, or alike across the section
    fields = gaussian_filter(rng.normal(size=(SIDE + 2 * margin, SIDE + 2 * margin, n)), (2, 2, 0))
    fields = fields[margin:-margin, margin:-margin]
    return (fields / fields.std(axis=(0, 1))).reshape(-1, n)


def made(name, seed, loadings):
    """A section of smooth features, genes that follow them, and genes as smooth that do not."""
    rng = np.random.default_rng(seed)
    seen = smooth(rng, 4)
    rates = np.hstack([np.exp(1.5 + 0.7 * seen @ loadings), np.exp(1.5 + 0.5 * smooth(rng, len(NOISE)))])
    rest = 3000 - rates.sum(axis=1, keepdims=True)  # of one depth: a spot's total tells nothing
    counts = np.stack([rng.multinomial(3000, spot) for spot in np.hstack([rates, rest]) / 3000])
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=[*PLANTED, *NOISE, "REST"]))
    adata.obs_names = [f"{name}{i}" for i in range(adata.n_obs)]
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    adata.obsm["spatial"] = 100.0 * np.column_stack([column, row])
    adata.obsm["X_seen"] = seen.astype(np.float32)
    return adata


def without_depth(values, totals):
    """Residuals after a quadratic function of log depth, by numpy's polynomials."""
    x = np.log(totals)
    return np.column_stack([y - np.poly1d(np.polyfit(x, y, 2))(x) for y in values.T])


@pytest.fixture(scope="module")
def known():
    loadings = np.random.default_rng(0).normal(size=(4, len(PLANTED)))
    loadings /= np.linalg.norm(loadings, axis=0)
    return {name: made(name, seed, loadings) for seed, name in enumerate("ABCD", start=1)}


@pytest.fixture(scope="module")
def table(known):
    return hggep.tl.predictability(known, **HOW)


@pytest.mark.parametrize("probe", ["low_rank_ridge", "ridge"])
def test_planted_genes_pass_and_smooth_noise_does_not(known, probe):
    table = hggep.tl.predictability(known, probe=probe, **HOW)
    assert (table.loc[PLANTED, "q"] < 0.05).all()
    assert (table.loc[NOISE, "q"] >= 0.05).mean() > 0.95
    assert stats.kstest(table.loc[NOISE, "p"], "uniform").pvalue > 0.01
    assert table.loc[PLANTED, "share"].between(0.75, 1.15).all()
    assert set(table.index[: len(PLANTED)]) == set(PLANTED)  # the most certain first
    assert table.attrs["folds"] == ["A", "B", "C", "D"]


def test_spots_taken_for_independent_would_call_noise_predictable(known, table):
    """The noise is as hard as on a slide: Student's t-test calls several times too many of these genes significant."""
    n = len(known) * SIDE**2
    assert (stats.norm.sf(table.loc[NOISE, "pcc"].abs() * np.sqrt(n)) < 0.025).mean() > 0.2


def test_figures_are_those_of_models_that_left_the_section_out(known):
    """By fit and predict, scipy's correlation, motions one by one, and Stouffer's rule as it is written."""
    rng = np.random.default_rng(0)
    uneven = {name: section.copy() for name, section in known.items()}
    for section in uneven.values():  # of another depth at every spot, which the columns of the panel hold
        depth = rng.uniform(0.1, 1, (section.n_obs, 1))
        section.X = sparse.csr_matrix(rng.binomial(section.X.toarray().astype(int), depth).astype(np.float32))
    table = hggep.tl.predictability(uneven, **HOW)
    genes = [PLANTED[0], NOISE[0], NOISE[1]]
    rows = {"pcc": [], "ceiling": [], "pcc_beyond_depth": [], "ceiling_beyond_depth": []}
    z = []
    for name, section in uneven.items():
        others = {other: one for other, one in uneven.items() if other != name}
        model = hggep.tl.fit(others, method="low_rank_ridge", **HOW)
        test = section.copy()
        hggep.tl.predict(test, model, key_added="ridge", progress=False)
        counts, totals = test[:, genes].X.toarray(), test.X.toarray().sum(axis=1)
        observed = np.log1p(1e4 * counts / totals[:, None])
        predicted = np.asarray(test[:, genes].layers["ridge"], dtype=float)
        seen, told = without_depth(observed, totals), without_depth(predicted, totals)
        r = stats.pearsonr(told, seen).statistic
        ceiling = noise_ceiling(test[:, HOW["genes"]].X, library=totals)[[0, 12, 13]]
        signal, by_depth = ceiling**2 * observed.var(axis=0), observed.var(axis=0) - seen.var(axis=0)
        rows["pcc"].append(stats.pearsonr(predicted, observed).statistic)
        rows["ceiling"].append(ceiling)
        rows["pcc_beyond_depth"].append(r)
        rows["ceiling_beyond_depth"].append(np.sqrt(np.maximum(signal - by_depth, 0) / seen.var(axis=0)))
        as_good = np.zeros(3)
        for moved in moved_maps(test.obsm["spatial"], 199, seed=0):
            there = moved >= 0
            as_good += [abs(np.corrcoef(told[moved[there], j], seen[there, j])[0, 1]) >= abs(r[j]) for j in range(3)]
        z.append(np.sign(r) * stats.norm.isf((1 + as_good) / 200 / 2))
    for column, values in rows.items():
        np.testing.assert_allclose(table.loc[genes, column], np.mean(values, axis=0), atol=1e-5)
    np.testing.assert_allclose(table.loc[genes, "p"], stats.norm.sf(np.sum(z, axis=0) / 2), rtol=1e-6)
    np.testing.assert_allclose(table["share"], table["pcc_beyond_depth"] / table["ceiling_beyond_depth"])


def test_depth_that_the_image_tells_is_no_expression(known):
    """Every gene has one share of the counts everywhere; the image tells how many there are."""
    rng = np.random.default_rng(0)
    even = {name: section.copy() for name, section in known.items()}
    for section in even.values():
        depth = np.rint(300 * np.exp(section.obsm["X_seen"][:, 0])).astype(int)
        shares = np.full(section.n_vars, 1 / section.n_vars)
        section.X = sparse.csr_matrix(np.stack([rng.multinomial(n, shares) for n in depth]).astype(np.float32))
    table = hggep.tl.predictability(even, **HOW)
    assert table["pcc"].mean() > 0.2
    assert (table["q"] < 0.05).mean() < 0.05
    assert stats.kstest(table["p"], "uniform").pvalue > 0.01


def test_q_is_the_least_rate_at_which_a_gene_passes(table):
    p = table["p"].to_numpy()
    rank = stats.rankdata(p, method="max")
    expected = [min(1, min(len(p) * p[j] / rank[j] for j in range(len(p)) if p[j] >= one)) for one in p]
    np.testing.assert_allclose(table["q"], expected)


def test_one_section_is_cut_into_blocks(known, warned):
    table = hggep.tl.predictability(known["A"], config={"fields_um": (50.0,), "fields_px": (250.0,)}, **HOW)
    assert table.attrs["folds"] == [f"block {i}" for i in range(1, 6)]
    assert "5 spatial blocks serve as folds" in warned.text
    assert (table.loc[PLANTED, "pcc"] > 0.4).all()
    assert table["p"].min() == pytest.approx(1 / 400)  # half of the least that 199 motions can tell
    assert (table.loc[NOISE, "p"] < 0.05).mean() < 0.15
    assert abs(table.loc[NOISE, "pcc"].mean()) < 0.1  # means of blocks do not run against what is observed


def test_blocks_do_not_see_their_own_counts(known):
    """Genes of independent spots, where nothing is to be known of a block from the rest."""
    section = known["A"].copy()
    rng = np.random.default_rng(0)
    section.X = sparse.csr_matrix(rng.poisson(3, section.shape).astype(np.float32))
    table = hggep.tl.predictability(section, config={"fields_um": (50.0,), "fields_px": (250.0,)}, **HOW)
    assert abs(table["pcc"].mean()) < 0.02
    assert (table["q"] > 0.05).all()


def test_groups_are_left_out_together(known):
    three = {name: known[name] for name in "ACD"}
    table = hggep.tl.predictability(three, groups={"A": "one", "C": "two", "D": "two"}, **HOW)
    assert table.attrs["folds"] == ["one", "two"]
    pcc = []
    for training, tested in (("CD", "A"), ("A", "C"), ("A", "D")):
        model = hggep.tl.fit({name: known[name] for name in training}, method="low_rank_ridge", **HOW)
        test = known[tested].copy()
        hggep.tl.predict(test, model, progress=False)
        observed = np.log1p(1e4 * test[:, HOW["genes"]].X.toarray() / 3000)
        pcc.append(stats.pearsonr(test[:, HOW["genes"]].layers["hggep"], observed).statistic)
    np.testing.assert_allclose(table.loc[HOW["genes"], "pcc"], np.mean(pcc, axis=0), atol=1e-5)


def test_constant_gene_has_no_figures_and_is_not_counted(known):
    lost = {name: section.copy() for name, section in known.items()}
    for section in lost.values():
        section.X = sparse.csr_matrix(section.X.toarray() * (section.var_names != PLANTED[0]))
    lost["A"].X = sparse.csr_matrix(lost["A"].X.toarray() * (lost["A"].var_names != PLANTED[1]))
    table = hggep.tl.predictability(lost, **HOW)
    assert table.index[-1] == PLANTED[0]
    assert table.loc[PLANTED[0], ["pcc", "ceiling", "share", "p", "q"]].isna().all()
    assert table.loc[[PLANTED[0], PLANTED[1], PLANTED[2]], "n_sections"].tolist() == [0, 3, 4]
    tested = table.dropna()
    np.testing.assert_allclose(tested["q"], stats.false_discovery_control(tested["p"]))


def test_on_the_image_of_synthetic_sections(sections):
    before = {name: section.copy() for name, section in sections.items()}
    table = hggep.tl.predictability(sections, config={"patch_size": 32}, **CPU)
    noise = table.index.str.startswith("NOI")
    assert table.loc[~noise, "pcc"].mean() > table.loc[noise, "pcc"].mean() + 0.2
    for name, section in sections.items():
        assert_same(section, before[name])


def test_bad_input(known):
    with pytest.raises(ValueError, match="probe='hggep' is not known; there are 'low_rank_ridge', 'ridge'"):
        hggep.tl.predictability(known, probe="hggep", **HOW)
    with pytest.raises(ValueError, match="n_folds=5 must be between 2 and the number of sections, 4"):
        hggep.tl.predictability(known, n_folds=5, **HOW)
    with pytest.raises(KeyError, match=r"no embeddings in obsm\['X_other'\]"):
        hggep.tl.predictability(known, **{**HOW, "encoder": "X_other"})
    empty = {**known, "B": known["B"].copy()}
    empty["B"].X = empty["B"].X * 0
    with pytest.raises(ValueError, match="section 'B' has no counts to learn from: give the slot with layer="):
        hggep.tl.predictability(empty, **HOW)
