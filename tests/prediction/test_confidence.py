"""What held-out training sections tell of a prediction, each figure against one that is had in another way."""

from dataclasses import fields

import anndata as ad
import numpy as np
import pytest
from PIL import Image
from scipy.stats import poisson, spearmanr

import hggep_sc as hggep
from helpers import CPU, LEARNING, TINY, make_adata
from hggep_sc.prediction.confidence import OTHER_STAIN, STAIN_SPOTS, UNLIKE, Confidence, optical_density
from hggep_sc.prediction.counting import counting_variance
from hggep_sc.section import open_sections
from hggep_sc.section.expression import ExpressionScale
from hggep_sc.training.confidence import _error_model, excess_variance
from hggep_sc.training.cross_fit import TURNS
from hggep_sc.training.split import held_out_spots, leave_out

SHORT = {**TINY, "fields_um": (60.0,), "fields_px": (112.0,), "epochs": 2}
ONCE = {**SHORT, "epochs": 1, "chunk_spots": 10}  # one epoch, of more than one step
METHODS = {"network": {"config": ONCE}, "ridge": {"method": "ridge", "config": {"patch_size": 32}}}
HOW = {
    "groups": {"S1": "a", "S2": "b", "S3": "a"},
    "weights": None,
    "device": "cpu",
    "progress": False,
    "key_added": "cv",
}
PLAIN = {"epochs": 1, "width": 32, "vit_heads": 2, "patch_size": 32}  # of the paper's preset
SLOTS = ("hggep_reliability", "hggep_uncertainty")


def fit(data, **settings):
    return hggep.tl.fit(data, **{"config": SHORT, **CPU, **settings})


def predict(data, model):
    hggep.tl.predict(data, model, device="cpu", progress=False)


def slots_of(adata, key="hggep"):
    return adata.var[f"{key}_reliability"].to_numpy(), adata.obs[f"{key}_uncertainty"].to_numpy()


def assert_equal(a, b):
    """Two confidences are the same bit for bit, kinds and shapes of their arrays too."""
    for field in fields(Confidence):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape), field.name
        np.testing.assert_array_equal(mine, other, err_msg=field.name)


def repainted(adata, folder, change):
    """The same section on another image."""
    copied = adata.copy()
    entry = copied.uns["spatial"][next(iter(copied.uns["spatial"]))]["metadata"]
    pixels = np.asarray(Image.open(entry["source_image_path"]))
    entry["source_image_path"] = str(folder / "repainted.png")
    Image.fromarray(change(pixels).astype(np.uint8)).save(folder / "repainted.png")
    return copied


def slow_moments(mean, total, target_sum):
    """Expectation and variance of log(1 + target_sum k / total), summed over every k that can occur."""
    k = np.arange(int(mean + 12 * np.sqrt(mean) + 30))
    share, logs = poisson.pmf(k, mean), np.log1p(target_sum * k / total)
    expected = (share * logs).sum()
    return expected, (share * (logs - expected) ** 2).sum()


class TestCountingNoise:
    @pytest.mark.parametrize("total", [100.0, 2e3, 1e6])
    def test_is_the_sum_over_counts(self, total):
        means = np.array([[1e-5, 0.003, 0.2, 1.0, 4.4, 9.0, 33.0, 80.0, 99.9]])
        slow = [slow_moments(mean, total, 1e4)[1] for mean in means[0]]
        np.testing.assert_allclose(counting_variance(means, np.array([total]), 1e4)[0], slow, rtol=2e-3)

    def test_is_the_variance_of_drawn_counts(self):
        means, total = np.array([[0.05, 0.7, 3.0, 20.0, 90.0, 250.0, 3000.0]]), 5e3
        drawn = np.log1p(1e4 / total * np.random.default_rng(0).poisson(means, (200_000, 7)))
        found = counting_variance(means, np.array([total]), 1e4)[0]
        np.testing.assert_allclose(found, drawn.var(0), rtol=0.03)

    def test_each_spot_has_its_own_depth(self):
        means, totals = np.random.default_rng(1).gamma(2, 2, (3, 4)), np.array([200.0, 1e3, 9e4])
        for i, of_spot in enumerate(counting_variance(means, totals, 1e4)):
            np.testing.assert_allclose(of_spot, [slow_moments(m, totals[i], 1e4)[1] for m in means[i]], rtol=2e-3)

    @pytest.mark.parametrize("total", [100.0, 2e4, 1e6])
    def test_large_means_go_on_where_small_ones_end(self, total):
        around = counting_variance(np.array([[99.99, 100.01]]), np.array([total]), 1e4)[0]
        assert around[1] == pytest.approx(around[0], rel=0.02)
        assert counting_variance(np.array([[1e6]]), np.array([total]), 1e4)[0, 0] < around[1]

    def test_no_counts_no_noise(self):
        assert counting_variance(np.zeros((1, 1)), np.array([10.0]), 1e4)[0, 0] == 0


def counted(log_shares, totals, rng):
    """Poisson counts of spots with these shares, brought to sum 1, and their log expression."""
    shares = np.exp(log_shares)
    shares /= shares.sum(1, keepdims=True)
    counts = rng.poisson(shares * totals[:, None]).astype(np.float32)
    return counts, np.log1p(1e4 * counts / totals[:, None])


class TestExcessVariance:
    @pytest.mark.parametrize("depth", [500, 3_000, 30_000])
    @pytest.mark.parametrize("spread", [0.0, 0.1])  # on real sections it is 0.05 to 0.15
    def test_nothing_is_left_of_a_prediction_that_is_right(self, depth, spread):
        rng = np.random.default_rng(depth)
        base, loadings = rng.normal(size=50), spread * rng.normal(size=50)
        log_shares = base + rng.normal(size=(800, 1)) * loadings
        totals = np.full(800, float(depth))
        counts, observed = counted(log_shares, totals, rng)
        shares = np.exp(log_shares) / np.exp(log_shares).sum(1, keepdims=True)
        grid = np.geomspace(shares.min() * depth, shares.max() * depth, 300)
        right = np.interp(shares * depth, grid, [slow_moments(mean, depth, 1e4)[0] for mean in grid])
        excess = excess_variance(right, observed, counts, totals, ExpressionScale())
        noise = (right - observed).var(0).mean()
        assert abs(excess.mean()) < 0.04 * noise

    @pytest.mark.parametrize("added", [0.2, 0.5])
    def test_it_grows_by_the_error_that_is_added(self, added):
        rng = np.random.default_rng(4)
        totals = rng.choice([20_000.0, 60_000.0], 1000)
        counts, observed = counted(np.tile(rng.normal(size=40), (1000, 1)), totals, rng)
        wrong = np.arange(1000) < 500
        error = added * rng.normal(size=counts.shape) * wrong[:, None]
        excess = excess_variance(observed.mean(0) + error, observed, counts, totals, ExpressionScale())
        assert excess[wrong].mean() == pytest.approx(added**2, rel=0.05)
        assert abs(excess[~wrong].mean()) < 0.05 * added**2

    def test_levels_of_genes_and_the_base_of_the_logarithm_do_not_matter(self):
        rng = np.random.default_rng(5)
        counts, observed = counted(rng.normal(size=(60, 8)), np.full(60, 900.0), rng)
        predicted = observed + rng.normal(size=observed.shape)
        once, shifted = (
            excess_variance(shown, observed, counts, np.full(60, 900.0), ExpressionScale())
            for shown in (predicted, predicted + rng.normal(size=8))
        )
        np.testing.assert_allclose(shifted, once, rtol=1e-6, atol=1e-9)


def section_with_errors(rng, loadings, n_spots=400, depth=30_000.0):
    """A prediction whose error grows along its first score, its counts' excess variance, and the true errors."""
    scores = rng.normal(size=(n_spots, 2))
    right = 0.3 * scores @ loadings
    sd = np.exp(0.5 * scores[:, 0] - 0.8)
    predicted = right + sd[:, None] * 0.05 * rng.normal(size=right.shape)
    truth = right + sd[:, None] * rng.normal(size=right.shape)
    totals = np.full(n_spots, depth)
    counts, observed = counted(truth, totals, rng)
    return predicted, excess_variance(predicted, observed, counts, totals, ExpressionScale()), sd


def of_parts(reliability=(), model=None, mean=0.0, std=1.0, distance=np.nan, stain=()):
    """A confidence of one field and one feature, where nothing else is said."""
    parts = model or (np.zeros((1, 1)), np.ones(1), np.ones(3), np.zeros(()))
    rest = np.full((1, 1), mean), np.full((1, 1), std), np.float32(distance), np.reshape(stain, (-1, 3))
    return Confidence(np.array(reliability), *parts, *rest)


@pytest.fixture(scope="module")
def simulated():
    """Confidence learnt on three sections; the prediction of a fourth, and its true errors."""
    rng = np.random.default_rng(6)
    loadings = rng.normal(size=(2, 60))
    predicted, excess, sd = zip(*(section_with_errors(rng, loadings) for _ in range(4)), strict=True)
    predicted = [part - part.mean(0) for part in predicted]
    return of_parts(model=_error_model(predicted[:3], excess[:3], 60)), predicted[3], sd[3]


class TestErrorModel:
    def test_spots_with_larger_errors_are_found(self, simulated):
        confidence, predicted, sd = simulated
        uncertainty = confidence.uncertainty(predicted, ExpressionScale())
        assert spearmanr(uncertainty, sd)[0] > 0.8
        # genes in another order, or spots in another: nothing is left
        rng = np.random.default_rng(7)
        shuffled = confidence.uncertainty(predicted[:, rng.permutation(60)], ExpressionScale())
        assert abs(spearmanr(shuffled, sd)[0]) < 0.4
        assert abs(spearmanr(uncertainty, rng.permutation(sd))[0]) < 0.15

    def test_their_size_is_that_of_the_errors(self, simulated):
        confidence, predicted, sd = simulated
        uncertainty = confidence.uncertainty(predicted, ExpressionScale())
        high, low = (sd > np.quantile(sd, 0.75)), (sd < np.quantile(sd, 0.25))
        for spots in (high, low, sd > 0):
            # log(1 + x) of shares that sum to 1 keeps somewhat less than the error of the log
            assert np.sqrt((uncertainty[spots] ** 2).mean() / (sd[spots] ** 2).mean()) == pytest.approx(1, abs=0.3)

    def test_units_are_natural_and_the_level_does_not_matter(self, simulated):
        confidence, predicted, _ = simulated
        natural = confidence.uncertainty(predicted, ExpressionScale())
        decimal = confidence.uncertainty(predicted / np.log(10) + 3, ExpressionScale(log_base="10"))
        np.testing.assert_allclose(decimal, natural, rtol=1e-4)
        assert natural.dtype == np.float32

    def test_a_spot_unlike_all_is_not_told_to_be_without_error(self):
        """The fitted variance falls without end along a score; what is told stops near the least that was fitted."""
        rng = np.random.default_rng(12)
        z = rng.normal(size=(500, 1))
        loadings = rng.normal(size=(1, 9))
        loadings /= np.linalg.norm(loadings)
        predicted = z @ loadings + 1e-3 * rng.normal(size=(500, 9))
        confidence = of_parts(model=_error_model([predicted], [3 + z[:, 0]], 9))
        assert confidence.floor == pytest.approx(np.quantile(3 + z, 0.05), rel=0.02)
        far = np.array([[-9.0], [9.0]]) @ loadings
        np.testing.assert_allclose(confidence.uncertainty(far, ExpressionScale())[0] ** 2, confidence.floor, rtol=1e-5)

    def test_nothing_learnt_is_nothing_told(self):
        confidence = of_parts(model=_error_model([], [], 5))
        assert np.isnan(confidence.uncertainty(np.ones((3, 5)), ExpressionScale())).all()


def centred(adata, genes):
    """Prediction and log expression of a section, around each gene's mean."""
    observed = np.log1p(1e4 * adata[:, genes].X.toarray() / np.asarray(adata.X.sum(1)))
    return [values - values.mean(0) for values in (adata[:, genes].layers["hggep"].astype(float), observed)]


class TestReliability:
    @pytest.mark.parametrize(
        ("names", "config", "groups"),
        [
            (("S1", "S2", "S3"), SHORT, None),
            (("S1", "S2"), {**SHORT, **LEARNING}, None),
            (("S1", "S2", "S3"), SHORT, {"S1": "a", "S2": "b", "S3": "a"}),
        ],
        ids=["frozen", "learns", "groups"],
    )
    def test_is_the_pcc_of_fits_without_the_section(self, sections, names, config, groups):
        """Of the network alone, as a linear path would be added in a proportion that is found on the way."""
        training = {name: sections[name] for name in names}
        model = fit(training, genes=15, config={**config, "linear": False}, groups=groups)
        without = {**config, "cross_fit": False}
        by_hand, products, squares = [], 0.0, 0.0
        for name in names:
            together = {name} if groups is None else {other for other in names if groups[other] == groups[name]}
            others = {other: section for other, section in training.items() if other not in together}
            left_out = training[name].copy()
            predict(left_out, fit(others, genes=model.genes, config=without))
            assert not set(SLOTS) & {*left_out.var, *left_out.obs}
            by_hand.append(hggep.tl.evaluate(left_out).loc[model.genes, "pcc"])
            predicted, observed = centred(left_out, model.genes)
            products, squares = products + (predicted * observed).mean(), squares + (predicted**2).mean()
        np.testing.assert_allclose(model.confidence.reliability, np.mean(by_hand, axis=0), atol=1e-4)
        assert np.std(by_hand, axis=0).mean() > 0.01  # the sections do differ
        # by the same sections the prediction is scaled, and nothing else of it changes
        as_trained, scaled = training["S1"].copy(), training["S1"].copy()
        predict(as_trained, fit(training, genes=model.genes, config=without))
        predict(scaled, model)
        weight = products / squares if products > 0 else 1.0
        expected = weight * centred(as_trained, model.genes)[0]
        np.testing.assert_allclose(centred(scaled, model.genes)[0], expected, atol=1e-4 * np.abs(expected).max())

    def test_of_one_section_is_that_of_its_blocks(self, sections):
        """Counts of a block set to none are the same as the block left out, but for typical depth, which counts use."""
        config, section = {**SHORT, "linear": False, "count_weight": 0.0}, sections["S1"]
        model = fit({"S1": section}, genes=15, config=config)
        assert np.isfinite(model.confidence.reliability).all()
        assert np.isnan(model.confidence.distance)  # from what other sections?
        turns = leave_out([open_sections(section)[0].xy], [None], 0)
        by_hand = []
        for (mask,) in turns:
            emptied = section.copy()
            emptied.X = emptied.X.multiply(~mask[:, None]).tocsr()
            other = fit({"S1": emptied}, genes=model.genes, config={**config, "cross_fit": False})
            predict(emptied, other)
            predicted = emptied[mask, model.genes].layers["hggep"]
            total = np.asarray(section.X.sum(1))[mask]
            observed = np.log1p(1e4 * section[mask, model.genes].X.toarray() / total)
            by_hand.append([np.corrcoef(p, o)[0, 1] for p, o in zip(predicted.T, observed.T, strict=True)])
        assert len(turns) == 5
        np.testing.assert_allclose(model.confidence.reliability, np.mean(by_hand, axis=0), atol=1e-4)


class TestWhatIsLookedAt:
    @pytest.mark.parametrize("validation", ["S3", 0.3])
    def test_not_the_spots_that_are_validated_on(self, sections, tmp_path, validation):
        """One epoch, as how many there are is what validation is for."""
        how = {"genes": 15, "validation": validation, "config": ONCE}
        masks = held_out_spots(open_sections(sections), validation, 0)
        changed = {}
        for (name, section), mask in zip(sections.items(), masks, strict=True):
            changed[name] = section.copy()
            counts = changed[name].X.toarray()
            counts[mask] = np.random.default_rng(0).poisson(5, (mask.sum(), section.n_vars))
            changed[name].X = type(section.X)(counts)
            if mask.all():
                changed[name] = repainted(changed[name], tmp_path, lambda pixels: 255 - pixels)
        assert sum(mask.sum() for mask in masks) > 0
        before, after = fit(sections, **how), fit(changed, **how)
        assert before.genes == after.genes
        assert np.isfinite(before.confidence.reliability).all()
        assert_equal(before.confidence, after.confidence)
        assert before.id == after.id  # nor for the proportion of network and linear path
        # what is trained on does matter
        seen = {**sections, "S1": changed["S1"].copy()}
        seen["S1"].X = seen["S1"].X[::-1]
        assert not np.array_equal(fit(seen, **how).confidence.reliability, before.confidence.reliability)

    def test_stain_and_features_of_the_training_sections_alone(self, sections):
        model = fit(sections, genes=15, validation="S2", config=ONCE)
        opened = {section.name: section for section in open_sections(sections)}
        expected = [optical_density(opened[name], 60, 32) for name in ("S1", "S3")]
        np.testing.assert_allclose(model.confidence.stain, expected, rtol=1e-6)


class TestSlots:
    def test_are_what_the_model_tells_by_name_and_row(self, sections, trained):
        rng = np.random.default_rng(8)
        section = sections["S3"][:, rng.permutation(60)].copy()
        section.obs["in_tissue"] = (np.arange(40) > 2).astype(int)
        predict(section, trained)
        reliability, uncertainty = slots_of(section)
        assert reliability.dtype == uncertainty.dtype == np.float32
        known = section.var_names.isin(trained.genes)
        assert np.isnan(reliability[~known]).all()
        assert (~known).sum() == 40
        of_gene = dict(zip(trained.genes, trained.confidence.reliability, strict=True))
        np.testing.assert_array_equal(reliability[known], [of_gene[gene] for gene in section.var_names[known]])
        assert np.isnan(uncertainty[:3]).all()
        expected = trained.confidence.uncertainty(section[3:, trained.genes].layers["hggep"], trained.scale)
        np.testing.assert_allclose(uncertainty[3:], expected, rtol=1e-4)
        assert np.ptp(expected) > 0

    def test_genes_that_the_object_lacks_are_left_out(self, sections, trained):
        (other,) = sections["S3"].var_names.difference(trained.genes)[:1]
        section = sections["S3"][:, [*trained.genes[5:], other]].copy()
        predict(section, trained)
        of_gene = dict(zip(trained.genes, trained.confidence.reliability, strict=True))
        expected = [of_gene.get(gene, np.nan) for gene in section.var_names]
        np.testing.assert_array_equal(slots_of(section)[0], expected)

    def test_each_section_of_an_object_is_centred_by_itself(self, sections, trained):
        for name in ("S1", "S3"):
            sections[name].obs["section"] = name
        both = ad.concat([sections["S1"], sections["S3"]], uns_merge="unique", index_unique="-")
        both.uns["spatial"] = {**sections["S1"].uns["spatial"], **sections["S3"].uns["spatial"]}
        hggep.tl.predict(both, trained, library_key="section", device="cpu", progress=False)
        predict(sections["S3"], trained)
        np.testing.assert_allclose(slots_of(both[40:])[1], slots_of(sections["S3"])[1], rtol=1e-4)

    def test_a_model_without_confidence_writes_neither_and_removes_those_of_another(self, sections, trained):
        paper = fit({"S1": sections["S1"]}, genes=trained.genes, preset="paper", config=PLAIN)
        assert paper.confidence is None
        section = sections["S3"]
        predict(section, trained)
        hggep.tl.predict(section, trained, key_added="kept", device="cpu")
        predict(section, paper)
        assert not set(SLOTS) & {*section.var, *section.obs}
        assert np.isfinite(slots_of(section, "kept")[1]).all()

    def test_survive_h5ad(self, sections, trained, tmp_path):
        predict(sections["S3"], trained)
        sections["S3"].write_h5ad(tmp_path / "a.h5ad")
        again = ad.read_h5ad(tmp_path / "a.h5ad")
        for mine, other in zip(slots_of(sections["S3"]), slots_of(again), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_saved_model_keeps_it_bit_for_bit(sections, trained, tmp_path):
    trained.save(tmp_path / "with")
    again = hggep.HGGEP.load(tmp_path / "with", device="cpu")
    assert_equal(trained.confidence, again.confidence)
    a, b = sections["S3"].copy(), sections["S3"].copy()
    predict(a, trained)
    predict(b, again)
    for mine, other in zip(slots_of(a), slots_of(b), strict=True):
        np.testing.assert_array_equal(mine, other)
    fit({"S1": sections["S1"]}, genes=5, config={**SHORT, "cross_fit": False}).save(tmp_path / "without")
    assert hggep.HGGEP.load(tmp_path / "without", device="cpu").confidence is None


class TestWarnings:
    def test_silent_on_a_section_alike(self, sections, trained, warned):
        for section in sections.values():
            predict(section, trained)
        assert "unlike" not in warned.text

    @pytest.mark.parametrize("saved", [False, True])
    def test_inverted_image(self, sections, trained, tmp_path, warned, saved):
        if saved:
            trained.save(tmp_path / "model")
            trained = hggep.HGGEP.load(tmp_path / "model", device="cpu")
        predict(repainted(sections["S3"], tmp_path, lambda pixels: 255 - pixels), trained)
        assert "section 'S3' looks unlike the training sections: its features are" in warned.text
        assert "section 'S3' is stained or scanned unlike the training sections" in warned.text

    @pytest.mark.parametrize("power", [3, 0.3], ids=["dark", "pale"])
    def test_other_stain(self, sections, trained, tmp_path, warned, power):
        """Optical densities times `power`."""
        changed = repainted(sections["S3"], tmp_path, lambda pixels: 255 * (pixels / 255) ** power)
        predict(changed, trained)
        assert "section 'S3' is stained or scanned unlike" in warned.text

    def test_embeddings_have_no_stain(self, sections, tmp_path, warned):
        rng = np.random.default_rng(9)
        for section in sections.values():
            section.obsm["emb"] = rng.normal(size=(40, 6)).astype(np.float32)
        model = fit({name: sections[name] for name in ("S1", "S2")}, genes=8, encoder="emb")
        assert model.confidence.stain.shape == (0, 3)
        predict(repainted(sections["S3"], tmp_path, lambda pixels: 255 - pixels), model)
        assert "unlike" not in warned.text
        sections["S3"].obsm["emb"] += 5
        predict(sections["S3"], model)
        assert "looks unlike" in warned.text
        assert "stained" not in warned.text

    @pytest.mark.parametrize(("distance", "limit"), [(2.0, 2.0 * UNLIKE), (0.1, 0.5), (np.nan, 0.5)])
    def test_limit_of_the_distance(self, warned, distance, limit):
        confidence = of_parts(mean=3.0, std=2.0, distance=distance)
        confidence.say_if_unlike("A", np.array([[3 - 2 * limit * 0.99]]), None)
        assert not warned.messages
        confidence.say_if_unlike("A", np.array([[3 - 2 * limit * 1.01]]), None)
        assert f"up to {limit:.2f} is usual" in warned.text

    @pytest.mark.parametrize("factor", [0.4 * OTHER_STAIN * 1.01, 0.2 / OTHER_STAIN * 0.99])
    def test_limit_of_the_stain(self, warned, factor):
        """Each colour is compared with the densest and the palest training section in that colour."""
        confidence = of_parts(stain=[[0.2, 0.6, 0.3], [0.4, 0.8, 0.35]])
        confidence.say_if_unlike("A", None, np.array([0.4 * OTHER_STAIN, 0.6 / OTHER_STAIN, 0.3]) * [0.99, 1.01, 1])
        assert not warned.messages
        confidence.say_if_unlike("A", None, np.array([factor, 0.7, 0.3]))
        assert "section 'A' is stained" in warned.text
        assert "0.70, 0.30; theirs from 0.20, 0.60, 0.30 to 0.40, 0.80, 0.35" in warned.text

    def test_distance_is_in_standard_deviations_of_the_training_spots(self, sections):
        """Sections of their own weigh alike, however many spots they have."""
        rng = np.random.default_rng(10)
        sections["S2"] = sections["S2"][:25].copy()
        drawn = {name: rng.normal(level, 2, (sections[name].n_obs, 3)) for name, level in (("S1", 0), ("S2", 4))}
        for name, values in drawn.items():
            sections[name].obsm["emb"] = values
        model = fit({name: sections[name] for name in drawn}, genes=8, encoder="emb")
        means, squares = (np.mean([(v**p).mean(0) for v in drawn.values()], axis=0) for p in (1, 2))
        sds = np.sqrt(squares - means**2)
        there = np.array([1.0, -2, 9])
        expected = np.sqrt((((there - means) / sds) ** 2).mean())
        assert model.confidence.distance_of(there[None]) == pytest.approx(expected, rel=1e-5)
        one, other = drawn.values()
        between = [np.sqrt((((a.mean(0) - b.mean(0)) / b.std(0)) ** 2).mean()) for a, b in ((one, other), (other, one))]
        assert model.confidence.distance == pytest.approx(max(between), rel=1e-5)

    def test_distance_is_to_the_sections_of_other_groups(self, sections):
        rng = np.random.default_rng(11)
        drawn = {
            name: rng.normal(level, 1, (sections[name].n_obs, 3))
            for name, level in zip(sections, (0, 3, 1), strict=True)
        }
        for name, values in drawn.items():
            sections[name].obsm["emb"] = values
        training = {name: sections[name] for name in drawn}
        found = [
            fit(training, genes=8, encoder="emb", groups=groups).confidence.distance
            for groups in (None, dict(zip(drawn, ("a", "b", "b"), strict=True)))
        ]
        first, second, third = drawn.values()

        def distance(values, *others):
            mean, square = (np.mean([(v**p).mean(0) for v in others], axis=0) for p in (1, 2))
            return np.sqrt((((values.mean(0) - mean) ** 2) / (square - mean**2)).mean())

        alone = distance(first, second, third), distance(second, first, third), distance(third, first, second)
        grouped = distance(first, second, third), distance(second, first), distance(third, first)
        np.testing.assert_allclose(found, [max(alone), max(grouped)], rtol=1e-5)
        assert max(grouped) > 1.2 * max(alone)


def test_optical_density_is_the_mean_over_the_pixels_around_the_spots():
    adata = make_adata()
    pixels = adata.uns["spatial"]["A"]["images"]["full"]
    slow = [
        [-np.log((float(pixels[y + dy, x + dx, channel]) + 1) / 256) for dy in range(-8, 8) for dx in range(-8, 8)]
        for channel in range(3)
        for x, y in adata.obsm["spatial"].astype(int)
    ]
    expected = np.reshape(slow, (3, -1)).mean(1)
    (section,) = open_sections(adata)
    np.testing.assert_allclose(optical_density(section, 16, 16), expected, rtol=1e-5)


def test_optical_density_of_many_spots_looks_at_some_from_all_over():
    adata = make_adata()
    many = ad.concat([adata] * 20, index_unique="-")
    many.uns = adata.uns
    xy = many.obsm["spatial"]
    # in the order of the columns, by which the image changes: the first spots alone would tell another density
    many.obsm["spatial"] = xy[np.argsort(xy[:, 0], kind="stable")] + 1e-3 * np.arange(len(xy))[:, None]
    (few,), (section,) = open_sections(adata), open_sections(many)
    assert len(section.xy) > STAIN_SPOTS
    np.testing.assert_allclose(optical_density(section, 16, 16), optical_density(few, 16, 16), rtol=0.02)


class TestLeftOut:
    @pytest.mark.parametrize("n", [2, 4, 5, 7, 11])
    def test_each_spot_of_several_sections_once_in_at_most_five_turns(self, n):
        xy = [np.random.default_rng(i).random((3 + i, 2)) for i in range(n)]
        turns = leave_out(xy, [None] * n, 0, TURNS)
        assert len(turns) == min(n, 5)
        for i, points in enumerate(xy):
            of_section = np.stack([masks[i] for masks in turns])
            assert of_section.shape == (len(turns), len(points))
            assert (of_section.sum(0) == 1).all()
            assert (of_section.sum(1) % len(points) == 0).all()  # whole sections
        sizes = [sum(mask.all() for mask in masks) for masks in turns]
        assert max(sizes) - min(sizes) <= 1
        assert len(leave_out(xy, [None] * n, 0)) == n
        together = leave_out(xy, ["the only patient"] * n, 0, TURNS)  # who cannot be left out
        for masks, expected in zip(together, turns, strict=True):
            assert all(map(np.array_equal, masks, expected))

    def test_sections_of_a_group_together(self):
        groups = ["b", "a", "b", "c", "a", "d"]
        xy = [np.random.default_rng(i).random((3 + i, 2)) for i in range(6)]
        for most, expected in ((5, [{"b"}, {"a"}, {"c"}, {"d"}]), (3, [{"b", "d"}, {"a"}, {"c"}])):
            turns = leave_out(xy, groups, 0, most)
            assert all(mask.all() or not mask.any() for masks in turns for mask in masks)
            assert [{groups[i] for i in range(6) if masks[i].all()} for masks in turns] == expected
            kept = [{groups[i] for i in range(6) if not masks[i].any()} for masks in turns]
            assert kept == [set("abcd") - out for out in expected]

    def test_blocks_of_the_only_section(self):
        xy = np.random.default_rng(0).random((500, 2))
        turns = leave_out([xy], [None], 3, TURNS)
        assert len(turns) == 5
        for (mask,) in turns:
            assert 0.2 <= mask.mean() < 0.3
        assert len({mask.tobytes() for (mask,) in turns}) == 5
        assert not leave_out([np.zeros((9, 2))], [None], 0)  # all in one place: nothing would be left


def test_both_slots_of_a_cross_validation_are_written_stored_and_read_back(sections, tmp_path):
    genes = sections["S1"].var_names[::5].tolist()
    how = {**HOW, "genes": genes, "path": tmp_path}
    again = {name: section.copy() for name, section in sections.items()}
    apart = {name: section.copy() for name, section in sections.items()}
    first = hggep.tl.cross_validate(sections, methods=METHODS, **how)
    second = hggep.tl.cross_validate(again, methods=METHODS, **how)
    assert second.folds["fit_s"].equals(first.folds["fit_s"])  # read, not run
    for name, section in sections.items():
        for mine, other in zip(slots_of(section, "cv_network"), slots_of(again[name], "cv_network"), strict=True):
            np.testing.assert_array_equal(mine, other)
        reliability, uncertainty = slots_of(section, "cv_network")
        assert np.isfinite(reliability).tolist() == section.var_names.isin(genes).tolist()
        assert np.isfinite(uncertainty).all()
        assert not {"cv_ridge_reliability", "cv_ridge_uncertainty"} & {*section.var, *section.obs}
    # they are those of a model that never saw the section
    left_out = apart.pop("S2")
    predict(left_out, fit(apart, genes=genes, config=ONCE))
    for mine, other in zip(slots_of(left_out), slots_of(sections["S2"], "cv_network"), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    # in one object: reliability where one model predicted all of it, as another's would tell of what is tested here
    for name, section in again.items():
        section.obs["section"] = name
    for names in (("S1", "S3"), ("S1", "S2", "S3")):
        stacked = ad.concat([again[name] for name in names], index_unique="-")
        stacked.uns["spatial"] = {name: again[name].uns["spatial"][name] for name in names}
        rest = [section for name, section in again.items() if name not in names]
        # concatenating leaves layers without the record by which they are known as earlier results
        third = hggep.tl.cross_validate([stacked, *rest], library_key="section", methods=METHODS, overwrite=True, **how)
        assert sorted(third.folds["fit_s"]) == sorted(first.folds["fit_s"])
        of_sections = [slots_of(sections[name], "cv_network") for name in names]
        expected = np.concatenate([uncertainty for _, uncertainty in of_sections])
        np.testing.assert_array_equal(stacked.obs["cv_network_uncertainty"], expected)
        assert ("cv_network_reliability" in stacked.var) == (len(names) == 2)
    np.testing.assert_array_equal(of_sections[0][0], of_sections[2][0])


def test_genes_that_no_section_can_judge_are_unknown(sections):
    """A gene without a count in one section has the others' mean; one without any in all has none."""
    for section in sections.values():
        counts = section.X.toarray()
        counts[:, 1] = 0
        section.X = type(section.X)(counts)
    counts = sections["S1"].X.toarray()
    counts[:, 0] = 0
    sections["S1"].X = type(sections["S1"].X)(counts)
    model = fit(sections, genes=sections["S1"].var_names[:6].tolist())
    assert np.isnan(model.confidence.reliability).tolist() == [False, True] + [False] * 4
    assert np.isfinite(model.confidence.uncertainty(np.zeros((3, 6), np.float32), model.scale)).all()
