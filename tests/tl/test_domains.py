import random

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import hggep_sc as hggep
from helpers import as_spatialdata, assert_same

FEW = {"layer": None, "n_permutations": 19}


@pytest.fixture
def section(sections):
    return sections["S3"]


@pytest.fixture
def predicted(section, trained):
    hggep.tl.predict(section, trained, device="cpu", progress=False)
    return section


def found(adata, **kwargs):
    hggep.tl.domains(adata, **{"layer": None, **kwargs})
    return adata.obs["hggep_domain"]


def two_sections(sections):
    joined = ad.concat([sections["S2"], sections["S3"]], label="library", keys=["S2", "S3"], index_unique="-")
    joined.uns["spatial"] = {name: sections[name].uns["spatial"][name] for name in ("S2", "S3")}
    return joined


def test_what_is_written(section):
    original = section.copy()
    assert hggep.tl.domains(section, label_key="region", **FEW) is None
    domain, record = section.obs["hggep_domain"], section.uns["hggep_domain"]
    sizes = domain.value_counts(sort=False)
    assert list(sizes.index) == [str(i) for i in range(record["n_domains"])]
    assert sizes.is_monotonic_decreasing
    assert record["ari"] == pytest.approx(adjusted_rand_score(section.obs["region"], domain), abs=1e-10)
    assert record["nmi"] == pytest.approx(normalized_mutual_info_score(section.obs["region"], domain), abs=1e-10)
    assert (record["n_labelled"], record["resolution"], record["optimistic"]) == (40, 1.0, False)
    assert record["ari_pval"] in np.arange(1, 21) / 20
    del section.obs["hggep_domain"], section.uns["hggep_domain"]
    assert_same(section, original)


def test_colours_of_earlier_domains_are_removed(section):
    section.uns["hggep_domain_colors"] = ["#ff0000"]
    section.uns["region_colors"] = ["#00ff00"]
    hggep.tl.domains(section, **FEW)
    assert "hggep_domain_colors" not in section.uns
    assert section.uns["region_colors"] == ["#00ff00"]


def test_a_prediction_is_clustered_by_its_spots_and_genes(predicted):
    predicted.layers["hggep"][5] = np.nan
    hggep.tl.domains(predicted)
    assert predicted.obs["hggep_domain"].isna().tolist() == [i == 5 for i in range(40)]
    assert predicted.uns["hggep_domain"]["n_genes"] == 20
    cut = hggep.get.prediction(predicted)
    assert np.array_equal(found(cut), predicted.obs["hggep_domain"].drop(predicted.obs_names[5]))


def test_counts_are_normalised_and_logs_are_not(section, caplog):
    caplog.set_level("INFO")
    counts = section.X.toarray()
    counts[3] = 0  # nothing was counted
    section.X = counts
    from_counts = found(section).copy()
    assert "raw counts" in caplog.text
    assert from_counts.isna().tolist() == [i == 3 for i in range(40)]
    caplog.clear()
    counted = section[from_counts.notna().to_numpy()].copy()
    counted.layers["log"] = np.log1p(1e4 * counted.X / counted.X.sum(axis=1, keepdims=True))
    assert np.array_equal(found(counted, layer="log"), from_counts.dropna())
    assert "raw counts" not in caplog.text


def test_labels_do_not_enter(section):
    domain = found(section, label_key="region", n_permutations=0).copy()
    section.obs["region"] = np.random.default_rng(0).permutation(section.obs["region"])
    assert np.array_equal(found(section, label_key="region", n_permutations=0), domain)
    assert np.array_equal(found(section), domain)


def test_order_of_spots_does_not_matter(section):
    hggep.tl.domains(section, label_key="region", spatial_weight=0.5, **FEW)
    shuffled = section[np.random.default_rng(0).permutation(40)].copy()
    hggep.tl.domains(shuffled, label_key="region", spatial_weight=0.5, **FEW)
    assert np.array_equal(shuffled.obs["hggep_domain"][section.obs_names], section.obs["hggep_domain"])
    for figure in ("ari", "nmi", "ari_pval", "nmi_pval"):
        assert shuffled.uns["hggep_domain"][figure] == section.uns["hggep_domain"][figure]


def test_seed_and_the_callers_random_state(section):
    first = found(section, seed=3).copy()
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert np.array_equal(found(section, seed=3), first)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert before[1] == random.getstate()


@pytest.mark.parametrize("n_domains", [2, 5])
def test_number_of_domains(section, n_domains):
    assert found(section, n_domains=n_domains, n_neighbors=8).nunique() == n_domains
    record = section.uns["hggep_domain"]
    assert record["n_domains"] == n_domains
    again = found(section.copy(), resolution=record["resolution"], n_neighbors=8)
    assert np.array_equal(again, section.obs["hggep_domain"])


def test_spatial_graph_makes_domains_compact(section):
    def broken_edges(domain):
        from scipy.spatial import cKDTree

        pairs = cKDTree(section.obsm["spatial"]).query_pairs(130, output_type="ndarray")  # 100 px apart
        return (domain.to_numpy()[pairs[:, 0]] != domain.to_numpy()[pairs[:, 1]]).sum()

    alone = broken_edges(found(section, n_domains=4))
    assert broken_edges(found(section, n_domains=4, spatial_weight=2.0)) < alone


def test_labels_that_do_not_count(section):
    labels = section.obs["region"].astype(str)
    labels.iloc[:4] = np.nan
    labels.iloc[4:10] = "undetermined"
    labels.iloc[10:13] = "artefact"
    section.obs["label"] = labels
    hggep.tl.domains(section, label_key="label", exclude_label=["undetermined", "artefact"], **FEW)
    record = section.uns["hggep_domain"]
    assert record["n_labelled"] == 27
    expected = adjusted_rand_score(labels.iloc[13:], section.obs["hggep_domain"].iloc[13:])
    assert record["ari"] == pytest.approx(expected, abs=1e-10)


def test_scan_is_named_optimistic(section, warned):
    resolutions = (0.3, 1.0, 2.0)
    singly = []
    for resolution in resolutions:
        hggep.tl.domains(section, label_key="region", resolution=resolution, **FEW)
        singly.append(section.uns["hggep_domain"]["ari"])
    assert "optimistic" not in warned.text
    hggep.tl.domains(section, label_key="region", scan=resolutions, **FEW)
    record = section.uns["hggep_domain"]
    assert record["optimistic"]
    assert "optimistic" in warned.text
    assert record["scan"]["ari"] == pytest.approx(singly)
    assert record["ari"] == pytest.approx(max(singly))
    assert record["resolution"] == resolutions[int(np.argmax(singly))]


def test_several_sections(sections):
    """Each is moved over itself: where the sections lie relative to one another does not matter."""
    joined = two_sections(sections)
    kwargs = {"label_key": "region", "library_key": "library", "spatial_weight": 0.5, **FEW}
    hggep.tl.domains(joined, **kwargs)
    apart = joined.copy()
    apart.obsm["spatial"][joined.obs["library"] == "S2"] += 1e5
    hggep.tl.domains(apart, **kwargs)
    assert np.array_equal(apart.obs["hggep_domain"], joined.obs["hggep_domain"])
    assert apart.uns["hggep_domain"]["ari_pval"] == joined.uns["hggep_domain"]["ari_pval"]


def test_sections_are_known_from_the_prediction(sections, trained):
    joined = two_sections(sections)
    hggep.tl.predict(joined, trained, library_key="library", device="cpu", progress=False)
    hggep.tl.domains(joined, label_key="region", n_permutations=19)
    assert "ari_pval" in joined.uns["hggep_domain"]


def test_spatialdata(section, trained):
    sdata = as_spatialdata(section)
    for data in (section, sdata):
        hggep.tl.predict(data, trained, device="cpu", progress=False)
    kwargs = {"layer": None, "label_key": "region", "spatial_weight": 0.5, "n_permutations": 99}
    hggep.tl.domains(section, **kwargs)
    copied = hggep.tl.domains(sdata, copy=True, **kwargs)
    table = copied.tables["table"]
    assert "hggep_domain" not in sdata.tables["table"].obs
    assert np.array_equal(table.obs["hggep_domain"][section.obs_names], section.obs["hggep_domain"])
    assert table.uns["hggep_domain"]["ari"] == section.uns["hggep_domain"]["ari"]
    # the shapes lie where the spots do, up to rounding
    assert table.uns["hggep_domain"]["ari_pval"] == pytest.approx(section.uns["hggep_domain"]["ari_pval"], abs=0.05)
    hggep.tl.domains(sdata)
    assert "hggep_domain" in sdata.tables["table"].obs


def test_copy_and_file(section, tmp_path):
    original = section.copy()
    copied = hggep.tl.domains(section, label_key="region", scan=[0.5, 1.0], copy=True, **FEW)
    assert_same(section, original)
    copied.write_h5ad(tmp_path / "section.h5ad")
    read = ad.read_h5ad(tmp_path / "section.h5ad")
    assert_same(read, copied)
    backed = ad.read_h5ad(tmp_path / "section.h5ad", backed="r")
    assert np.array_equal(
        found(backed, resolution=copied.uns["hggep_domain"]["resolution"]), copied.obs["hggep_domain"]
    )


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _unchanged(self, section):
        """Every test in here fails the call, which leaves the object as it was."""
        yield
        assert "hggep_domain" not in section.obs
        assert "hggep_domain" not in section.uns

    @pytest.mark.parametrize(
        ("kwargs", "error", "match"),
        [
            ({"layer": "hggep"}, KeyError, r"no prediction 'hggep'.*tl\.predict"),
            ({"layer": "missing"}, KeyError, "'missing'.*Layers here: none"),
            ({"label_key": "missing"}, KeyError, "`label_key`: obs has no column 'missing'; columns: .*'region'"),
            ({"label_key": "in_tissue"}, ValueError, r"holds 1 label\(s\) \('1'\) at the 40 clustered spots"),
            ({"label_key": "region", "library_key": "missing"}, KeyError, "`library_key`: obs has no column"),
            ({"label_key": "region", "spatial_key": "missing"}, KeyError, r"obsm\['missing'\] is missing"),
            ({"resolution": 0}, ValueError, "resolution=0 must be a finite number above 0"),
            ({"resolution": np.nan}, ValueError, "resolution=nan must be a finite number above 0"),
            ({"n_domains": 0}, ValueError, "n_domains=0 must be at least 1"),
            ({"n_domains": 41}, ValueError, "41 domains of 40 spots"),
            ({"n_domains": 3, "resolution": 2.0}, ValueError, "resolution and n_domains are given"),
            ({"n_domains": 3, "scan": [1.0], "label_key": "region"}, ValueError, "n_domains and scan are given"),
            ({"scan": [1.0, 2.0]}, ValueError, "name their column by label_key="),
            ({"scan": [], "label_key": "region"}, ValueError, r"scan=\[\] is empty"),
            ({"scan": [1.0, -1.0], "label_key": "region"}, ValueError, "scan=-1.0 must be a finite number above 0"),
            ({"spatial_weight": -1}, ValueError, "spatial_weight=-1 must be a finite number of at least 0"),
            ({"n_permutations": -1}, ValueError, "n_permutations=-1 must be at least 0"),
            (
                {"label_key": "region", "key_added": "region"},
                ValueError,
                r"would replace obs\['region'\], which .* this call, cannot do without",
            ),
            ({"table_key": "missing", "data": None}, TypeError, "AnnData or SpatialData"),
        ],
    )
    def test_refused(self, section, kwargs, error, match):
        with pytest.raises(error, match=match):
            hggep.tl.domains(**{"data": section, "layer": None, **kwargs})

    def test_all_labels_excluded(self, section):
        with pytest.raises(ValueError, match=r"holds 0 label\(s\) \(none\)"):
            found(section, label_key="region", exclude_label=list(section.obs["region"].unique()))

    def test_missing_values(self, section):
        section.X.data[3] = np.nan
        with pytest.raises(ValueError, match="X holds NaN"):
            found(section)

    def test_zeros(self, section):
        section.X.data[:] = 0
        with pytest.raises(ValueError, match="zeros alone"):
            found(section)

    def test_one_gene(self, predicted):
        gene = predicted.var_names[predicted.var["hggep_predicted"]][:1]
        with pytest.raises(ValueError, match=r"domains of 1 gene\(s\)"):
            hggep.tl.domains(predicted[:, gene].copy())

    def test_the_same_everywhere(self, predicted):
        """As the mean of the genes predicts it."""
        predicted.layers["hggep"][:] = predicted.layers["hggep"][0]
        with pytest.raises(ValueError, match=r"layers\['hggep'\] is the same at every spot"):
            hggep.tl.domains(predicted)

    def test_no_matrix(self, section):
        section.X = None
        with pytest.raises(KeyError, match="X is empty"):
            found(section)

    def test_prediction_is_not_overwritten(self, predicted):
        with pytest.raises(ValueError, match=r"would replace uns\['hggep'\], which is no earlier result"):
            hggep.tl.domains(predicted, key_added="hggep")

    def test_several_sections_without_a_column(self, sections):
        with pytest.raises(ValueError, match=r"several sections: 'S2', 'S3'.*`library_key=`"):
            found(two_sections(sections), label_key="region")

    def test_too_small_for_p_values(self, section):
        with pytest.raises(ValueError, match=r"n_permutations=0 leaves them out: .*at least 10 spots"):
            found(section[:8].copy(), label_key="region")

    def test_no_coordinates(self, section):
        section.obsm["spatial"][2] = np.nan
        with pytest.raises(ValueError, match="two finite numbers"):
            found(section, spatial_weight=1.0)

    def test_number_that_cannot_be_had(self, section):
        section.X = np.repeat(section.X[:4].toarray(), 10, axis=0)  # four kinds of spots, ten alike of each
        with pytest.raises(ValueError, match="n_domains=3 cannot be had"):
            found(section, n_domains=3, n_neighbors=3)


def test_observed_expression_of_a_real_section(shared, monkeypatch):
    """C2 against the study's clusters: better than any of 199 motions of the domains."""
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    section = hggep.datasets.her2st(["C2"])["C2"]
    hggep.tl.domains(section, layer=None, n_domains=7, label_key="cluster", n_permutations=199)
    record = section.uns["hggep_domain"]
    assert record["n_labelled"] == 185  # two have no cluster
    assert record["ari"] > 0.15
    assert record["ari_pval"] <= 0.02


@pytest.mark.parametrize(("slot", "key"), [("obs", "mine"), ("uns", "mine"), ("uns", "hggep")])
def test_what_is_no_result_of_it_is_replaced_on_request_alone(predicted, slot, key, warned):
    if key == "mine":
        getattr(predicted, slot)[key] = "annotation" if slot == "obs" else {"notes": 1}
    before = predicted.copy()
    with pytest.raises(ValueError, match=rf"key_added= would replace {slot}\['{key}'\], which is no earlier result"):
        hggep.tl.domains(predicted, key_added=key)
    assert_same(predicted, before)
    hggep.tl.domains(predicted, key_added=key, overwrite=True)
    assert f"replaced, as overwrite=True says: {slot}['{key}']" in warned.text
    assert predicted.uns[key]["n_domains"] == predicted.obs[key].nunique()
    warned.clear()
    if key == "mine":
        hggep.tl.domains(predicted, key_added=key)  # its own
        assert "replaced" not in warned.text


@pytest.mark.parametrize("key", ["spatial", "in_tissue", "array_row", "array_col", "a/b", "", 5])
def test_names_that_are_taken_by_the_object(section, key):
    before = section.copy()
    with pytest.raises(ValueError, match="key_added="):
        hggep.tl.domains(section, layer=None, key_added=key, overwrite=True)
    assert_same(section, before)
