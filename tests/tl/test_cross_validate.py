import logging
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from helpers import TINY, WAIT, as_spatialdata, assert_same
from hggep_sc import tl

RIDGE = {"patch_size": 32, "fields_um": (60.0, 120.0), "fields_px": (60.0, 120.0)}
NETWORK = {"config": {**TINY, "epochs": 1}}
METHODS = {"mean": {"method": "gene_mean"}, "ridge": {"method": "ridge", "config": RIDGE}, "network": NETWORK}
EVERY_METHOD = {
    **METHODS,
    "network": {**NETWORK, "validation": 0.2},  # stopping is chosen inside the fold too
    "low rank": {"method": "low_rank_ridge", "config": {**RIDGE, "rank": 4}},
    "nearest": {"method": "nearest_patches", "config": RIDGE},
}
HOW = {"weights": None, "device": "cpu", "progress": False, "genes": 12}


def assert_same_but_for_threads(result, other):
    """The same runs, and the same figures where no network is trained: its rounding depends on the threads."""
    keys = ["fold", "section", "method", "seed", "gene", "metric"]
    pd.testing.assert_frame_equal(result.table[keys], other.table[keys])
    assert not result.table.duplicated(keys).any()
    assert result.folds["error"].eq("").all()
    tables = (run.table.query("method != 'network'") for run in (result, other))
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def one_run(_synthetic):
    sections = {name: section.copy() for name, section in _synthetic.items()}
    return tl.cross_validate(sections, methods=METHODS, **HOW)


def test_every_section_is_scored_by_every_method_and_nothing_is_written(sections, one_run):
    before = {name: section.copy() for name, section in sections.items()}
    tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, **HOW)
    for name, section in sections.items():
        assert_same(section, before[name])
    table = one_run.table
    assert list(table) == ["fold", "section", "method", "algorithm", "seed", "gene", "metric", "value"]
    expected = {"mean": "gene_mean", "ridge": "ridge", "network": "hggep"}
    assert dict(zip(table["method"], table["algorithm"], strict=True)) == expected
    assert dict(zip(one_run.folds["method"], one_run.folds["algorithm"], strict=True)) == expected
    assert one_run.summary()["algorithm"].to_dict() == expected
    assert set(one_run.folds["role"]) == {"held out"}
    assert set(table["section"]) == {"S1", "S2", "S3"}
    assert set(table["metric"]) >= {"pcc", "pcc_pval", "spearman", "rmse", "ssim", "ceiling"}
    per_run = table.groupby(["fold", "method"])["gene"].nunique()
    assert (per_run == 12).all()
    assert len(per_run) == 9
    assert one_run.folds["error"].eq("").all()
    for _, row in one_run.folds.iterrows():
        assert row["test"] not in row["training"]


def test_it_is_what_fit_predict_and_evaluate_give_by_hand(sections, one_run):
    test = sections.pop("S2")
    model = tl.fit(sections, method="ridge", config=RIDGE, **HOW)
    tl.predict(test, model, device="cpu")
    by_hand = tl.evaluate(test)
    of_fold = one_run.table.query("fold == 'S2' and method == 'ridge'").pivot(
        index="gene", columns="metric", values="value"
    )
    for metric in ("pcc", "rmse", "spearman", "ssim", "ceiling"):
        np.testing.assert_allclose(of_fold.loc[by_hand.index, metric], by_hand[metric], rtol=1e-6)
    assert one_run.folds.query("fold == 'S2' and method == 'ridge'")["model"].item() == model.id


def test_folds_may_be_run_apart(sections, one_run, tmp_path):
    """One fold, learnt from the other two sections all the same; then the rest, which finds it stored."""
    how = {**HOW, "methods": {"ridge": METHODS["ridge"]}, "path": tmp_path}
    part = tl.cross_validate(sections, only=["S2"], **how)
    expected = one_run.table.query("fold == 'S2' and method == 'ridge'").reset_index(drop=True)
    pd.testing.assert_frame_equal(part.table, expected, rtol=1e-4, atol=1e-5)
    (stored,) = tmp_path.glob("*.h5ad")
    written = stored.stat().st_mtime_ns
    whole = tl.cross_validate(sections, **how)
    assert list(whole.folds["fold"]) == ["S1", "S2", "S3"]
    assert stored.stat().st_mtime_ns == written


def test_gene_mean_scores_nothing(one_run):
    assert one_run.table.query("method == 'mean' and metric == 'pcc'")["value"].isna().all()
    assert np.isnan(one_run.summary().loc["mean", "mean"])


def test_what_only_the_test_section_holds_changes_nothing_in_training(sections, one_run):
    """A gene that varies in the test section alone, and another depth there: the same models to the bit."""

    def with_extra(depth, extra_of_s3):
        changed = {}
        for name, section in sections.items():
            counts, extra = section.X.toarray(), np.zeros((section.n_obs, 1), np.float32)
            if name == "S3":
                counts, extra[:, 0] = counts * depth, extra_of_s3
            changed[name] = ad.AnnData(
                np.hstack([counts, extra]),
                obs=section.obs,
                var=pd.DataFrame(index=[*section.var_names, "EXTRA"]),
                obsm=dict(section.obsm),
                uns=section.uns,
            )
        return changed

    wild = np.random.default_rng(0).poisson(50, sections["S3"].n_obs)
    data = with_extra(depth=1, extra_of_s3=0), with_extra(depth=7, extra_of_s3=wild)
    runs = [tl.cross_validate(each, methods=EVERY_METHOD, **HOW) for each in data]
    models = [run.folds.query("fold == 'S3'").set_index("method")["model"] for run in runs]
    assert models[0].to_dict() == models[1].to_dict()
    others = [run.folds.query("fold == 'S1' and method == 'network'")["model"].item() for run in runs]
    assert others[0] != others[1]  # where S3 is trained on, it does matter
    assert "EXTRA" not in set(runs[1].table.query("fold == 'S3'")["gene"])


def test_groups_are_left_out_together(sections):
    for name, section in sections.items():
        section.obs["donor"] = "p1" if name == "S2" else "p2"
    by_column = tl.cross_validate(sections, groups="donor", methods={"mean": METHODS["mean"]}, **HOW)
    assert by_column.folds[["fold", "test", "training"]].to_numpy().tolist() == [
        ["p2", "S1, S3", "S2"],
        ["p1", "S2", "S1, S3"],
    ]
    groups = {"S1": "p2", "S2": "p1", "S3": "p2"}
    by_name = tl.cross_validate(sections, groups=groups, methods={"mean": METHODS["mean"]}, **HOW)
    pd.testing.assert_frame_equal(by_name.table, by_column.table)


def test_groups_are_left_out_together_inside_a_fold(sections):
    """What is learnt there on left-out sections scales the network, and so makes another model."""
    sections["S4"] = sections["S3"][:30].copy()
    groups = {"S1": "a", "S2": "b", "S3": "a", "S4": "c"}
    method = {"config": {**TINY, "epochs": 1, "cross_fit": True}}
    run = tl.cross_validate(sections, groups=groups, only=["c"], methods={"network": method}, **HOW)
    training = {name: sections[name] for name in ("S1", "S2", "S3")}
    ids = [tl.fit(training, groups=of, **method, **HOW).id for of in ({n: groups[n] for n in training}, None)]
    assert run.folds["model"].tolist() == ids[:1]
    assert ids[0] != ids[1]


def test_sections_of_one_patient_on_both_sides_are_warned_of(sections, warned):
    for name, section in sections.items():
        section.obs["patient"] = "p1" if name == "S2" else "p2"
    tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, **HOW)
    warning = "sections S1, S3 are predicted by models trained on others of the same patient"
    assert warning in warned.text
    warned.clear()
    # groups that split the patient are no better
    tl.cross_validate(sections, groups={"S1": "a", "S2": "a", "S3": "b"}, methods={"mean": METHODS["mean"]}, **HOW)
    assert warning in warned.text
    warned.clear()
    tl.cross_validate(sections, groups="patient", methods={"mean": METHODS["mean"]}, **HOW)
    assert "same patient" not in warned.text


def test_one_section_under_two_names_is_found(sections, warned):
    sections["copy"] = sections["S1"].copy()
    tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, **HOW)
    assert "S1 (fold S1)" in warned.text
    assert "copy (fold copy)" in warned.text
    assert "S2 (fold" not in warned.text


def test_finished_folds_are_read_and_not_run_again(sections, tmp_path, monkeypatch, one_run):
    from hggep_sc.cross_validation import run as cross_validation

    first = tl.cross_validate(sections, methods=METHODS, path=tmp_path, **HOW)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 9
    monkeypatch.setattr(cross_validation, "run_task", lambda task: pytest.fail(f"{task.name} is run again"))
    again = tl.cross_validate(sections, methods=METHODS, path=tmp_path, **HOW)
    pd.testing.assert_frame_equal(again.table, first.table)
    pd.testing.assert_frame_equal(again.folds, first.folds, check_dtype=False)
    pd.testing.assert_frame_equal(again.table, one_run.table)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    renamed = tl.cross_validate(sections, methods={"another name": METHODS["ridge"]}, path=tmp_path, **HOW)
    expected = first.table.query("method == 'ridge'").assign(method="another name").reset_index(drop=True)
    pd.testing.assert_frame_equal(renamed.table, expected)


def test_a_fold_that_an_earlier_version_scored_gets_the_figures_that_it_lacks(sections, tmp_path, monkeypatch, one_run):
    from hggep_sc.cross_validation import run as cross_validation

    tl.cross_validate(sections, methods=METHODS, path=tmp_path, **HOW)
    for file in tmp_path.iterdir():
        stored = ad.read_h5ad(file)
        stored.uns["scores"] = stored.uns["scores"].query("not metric.str.endswith('beyond_depth')")
        stored.write_h5ad(file)
    monkeypatch.setattr(cross_validation, "run_task", lambda task: pytest.fail(f"{task.name} is run again"))
    again = tl.cross_validate(sections, methods=METHODS, path=tmp_path, **HOW)
    pd.testing.assert_frame_equal(again.table, one_run.table)


@pytest.mark.parametrize(
    "change", ["counts", "image", "config", "seed", "genes", "name of a gene", "places", "order", "damage"]
)
def test_a_fold_is_run_again_where_something_changed(sections, tmp_path, monkeypatch, change):
    from hggep_sc.cross_validation import run as cross_validation

    method = "ridge" if change == "image" else "mean"  # of which the second looks at none
    methods, how = {method: METHODS[method]}, {**HOW, "path": tmp_path, "genes": sections["S1"].var_names[:40]}
    tl.cross_validate(sections, methods=methods, **how)
    run, names = cross_validation.run_task, []
    monkeypatch.setattr(cross_validation, "run_task", lambda task: names.append(task.fold) or run(task))
    if change == "counts":
        sections["S2"].X[0, 0] += 1
    elif change == "image":
        library = sections["S2"].uns["spatial"]["S2"]
        library["images"]["full"] = 255 - library["images"]["hires"]
        library["scalefactors"]["tissue_full_scalef"] = library["scalefactors"]["tissue_hires_scalef"]
        how["image_key"] = {"S1": "source", "S2": "full", "S3": "source"}
    elif change == "config":
        methods["mean"] = {**methods["mean"], "config": {"target_sum": 1e3}}
    elif change == "seed":
        how["seeds"] = 1
    elif change == "genes":
        how["genes"] = np.int64(11)
    elif change == "name of a gene":  # in the middle of many, which prints as "..."
        how["genes"] = [*sections["S1"].var_names[:20], sections["S1"].var_names[50], *sections["S1"].var_names[21:40]]
    elif change == "places":
        sections["S2"].obs["array_col"] += 1
    elif change == "order":
        sections = {name: sections[name] for name in ("S1", "S3", "S2")}
    elif change == "damage":
        damaged = next(file for file in tmp_path.iterdir() if file.name.startswith("S2_"))
        damaged.write_bytes(damaged.read_bytes()[:1000])
    tl.cross_validate(sections, methods=methods, **how)
    expected = {"damage": ["S2"], "order": ["S1"]}  # the training of S2 and S3 is in the same order as before
    assert names == expected.get(change, ["S1", "S2", "S3"])


def test_a_failing_fold_is_named_and_the_others_survive(sections, tmp_path, warned):
    # one spot of S1 has counts in the panel: enough to learn from, too few for a correlation
    genes = sections["S1"].var_names[:5].tolist()
    section = sections["S1"]
    section.X = section.X.toarray()
    section.X[1:, :5] = 0
    section.X[0, :5] = 1
    result = tl.cross_validate(
        sections, methods={"mean": METHODS["mean"]}, path=tmp_path, normalize="panel", **{**HOW, "genes": genes}
    )
    errors = result.folds.set_index("fold")["error"]
    assert "a correlation needs two predicted spots with counts; found 1" in errors["S1"]
    assert errors[["S2", "S3"]].eq("").all()
    assert "fold 'S1', method 'mean', seed 0 failed" in warned.text
    assert sorted(file.name[:2] for file in tmp_path.iterdir()) == ["S2", "S3"]
    assert set(result.table["section"]) == {"S2", "S3"}
    assert "2 of 3 runs" in repr(result)


def test_where_all_fail_the_error_is_raised(sections, monkeypatch):
    def fails(*given, **settings):
        raise ValueError("no")

    monkeypatch.setattr("hggep_sc.cross_validation.run.fit_method", fails)
    with pytest.raises(RuntimeError, match=r"every fold failed; fold 'S1', method 'network', seed 0"):
        tl.cross_validate(sections, methods={"network": NETWORK}, **HOW)


def test_predictions_go_into_layers(sections):
    result = tl.cross_validate(sections, methods=METHODS, key_added="cv", **{**HOW, "genes": None})
    for name, section in sections.items():
        assert {"cv_mean", "cv_ridge", "cv_network"} <= set(section.layers)
        record = section.uns["cv_ridge"]
        assert record["sections"]["role"].tolist() == ["held out"]
        assert record["sections"]["name"].tolist() == [name]
        by_evaluate = tl.evaluate(section, key="cv_ridge")["pcc"]
        of_fold = result.table.query("section == @name and method == 'ridge' and metric == 'pcc'").set_index("gene")
        np.testing.assert_allclose(of_fold["value"].loc[by_evaluate.index], by_evaluate, rtol=1e-6)


def test_stored_folds_give_the_same_layers(sections, tmp_path):
    first = {name: section.copy() for name, section in sections.items()}
    for data in (first, sections):  # run, then read
        tl.cross_validate(
            data, methods={"ridge": METHODS["ridge"]}, path=tmp_path, key_added="cv", **HOW | {"genes": None}
        )
    for name, section in sections.items():
        assert_same(section, first[name])


def test_several_seeds(sections):
    result = tl.cross_validate(sections, methods={"net": NETWORK}, seeds=[0, 1], key_added="cv", **HOW)
    assert result.folds.groupby("seed")["model"].nunique().tolist() == [3, 3]
    assert result.folds["model"].nunique() == 6
    assert {"cv_net_0", "cv_net_1"} <= set(sections["S1"].layers)


def test_spatialdata_gives_the_same_as_anndata(sections):
    methods, how = {"mean": METHODS["mean"]}, {**HOW, "genes": sections["S1"].var_names[:12]}
    as_sd = {name: as_spatialdata(section) for name, section in sections.items()}
    one = tl.cross_validate(sections, methods=methods, **how).table
    other = tl.cross_validate(as_sd, methods=methods, key_added="cv", **how).table
    one, other = (t[t["metric"] == "rmse"].reset_index(drop=True) for t in (one, other))
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)
    assert "cv_mean" in as_sd["S1"]["table"].layers


def test_several_sections_in_one_object(sections):
    """They come out as apart; the layers can be evaluated, section by section."""
    libraries = {}
    for name, section in sections.items():
        section.obs["slide"] = name
        libraries |= section.uns["spatial"]
    stacked = ad.concat(sections, index_unique="-")
    stacked.uns["spatial"] = libraries
    how = {**HOW, "genes": sections["S1"].var_names[:12], "methods": {"ridge": METHODS["ridge"]}}
    apart = tl.cross_validate(sections, **how)
    together = tl.cross_validate({"patient": stacked}, library_key="slide", key_added="cv", **how)
    names = {f"patient/{name}": name for name in sections}
    renamed = together.table.assign(
        fold=together.table["fold"].map(names), section=together.table["section"].map(names)
    )
    pd.testing.assert_frame_equal(renamed, apart.table, rtol=1e-6)
    scores = tl.evaluate(stacked, key="cv_ridge").set_index("section", append=True)["pcc"]
    of_cv = apart.table.query("metric == 'pcc'").set_index(["gene", "section"])["value"]
    np.testing.assert_allclose(scores, of_cv.loc[scores.index], rtol=1e-6)


def test_settings_for_all_are_those_of_each(sections):
    """As a call may have them of one method, so may it of all."""
    one = tl.cross_validate(sections, methods={"ridge": {"config": RIDGE}, "net": NETWORK}, only=["S2"], **HOW)
    methods = {"ridge": {}, "net": {"config": {"epochs": 1}}}
    shared = {**TINY, "fields_px": (112.0, 224.0), "alphas": (50.0,)}
    two = tl.cross_validate(sections, methods=methods, config=shared, only=["S2"], **HOW)
    assert one.folds["model"].iloc[1] == two.folds["model"].iloc[1]
    assert one.folds["model"].iloc[0] != two.folds["model"].iloc[0]


def test_one_section_in_blocks_is_what_fit_predict_and_evaluate_give_by_hand(sections, warned):
    section = sections["S1"]
    config = {"patch_size": 32, "fields_um": (60.0, 300.0), "fields_px": (60.0, 300.0), "alphas": (1.0,)}
    how = {**HOW, "genes": section.var_names[:12].tolist(), "config": config}
    result = tl.cross_validate(section, methods=["ridge"], n_folds=2, key_added="cv", **how)
    assert "S1: there is nothing else to leave out, so 2 spatial blocks serve as folds" in warned.text
    assert "beside" not in warned.text
    assert result.folds["test"].tolist() == ["S1 (block 1)", "S1 (block 2)"]
    assert set(result.folds["role"]) == {"held out"}
    assert section.uns["cv_ridge"]["sections"]["role"].tolist() == ["held out"]
    assert section.uns["cv_ridge"]["sections"]["name"].tolist() == ["S1"]
    xy = section.obsm["spatial"]
    axis = int(np.ptp(xy[:, 1]) > np.ptp(xy[:, 0]))
    block = np.argsort(np.argsort(xy[:, axis])) >= 20  # the second of two: cut across the longer side
    for name, test in {"block 1": ~block, "block 2": block}.items():
        apart = np.abs(xy[:, None] - xy[test]).max(-1).min(1)
        by_hand = section[apart >= 300].copy()  # the largest field of view, at 1 um per px
        model = tl.fit(by_hand, method="ridge", **how)
        whole = section.copy()
        tl.predict(whole, model, device="cpu", progress=False)
        tested = whole[test].copy()
        np.testing.assert_allclose(
            section[test].layers["cv_ridge"][:, :12], tested.layers["hggep"][:, :12], rtol=1e-4, atol=1e-5
        )
        scores = result.table.query("metric == 'pcc'").set_index(["fold", "gene"])["value"].loc[name]
        expected = tl.evaluate(tested)["pcc"]
        np.testing.assert_allclose(scores.loc[expected.index], expected, rtol=1e-4, atol=1e-5)


def test_blocks_are_stored_and_read(sections, tmp_path, monkeypatch):
    from hggep_sc.cross_validation import run as cross_validation

    how = {**HOW, "methods": ["gene_mean"], "config": {"fields_um": (60.0,), "fields_px": (60.0,)}, "path": tmp_path}
    first = tl.cross_validate(sections["S1"], n_folds=2, **how)
    monkeypatch.setattr(cross_validation, "run_task", lambda task: pytest.fail(f"{task.name} is run again"))
    again = tl.cross_validate(sections["S1"], n_folds=2, **how)
    pd.testing.assert_frame_equal(again.table, first.table)
    pd.testing.assert_frame_equal(again.folds, first.folds, check_dtype=False)


def test_blocks_of_spatialdata_are_those_of_anndata(sections):
    how = {**HOW, "methods": ["gene_mean"], "config": {"fields_um": (60.0,), "fields_px": (60.0,)}, "n_folds": 2}
    one = tl.cross_validate(sections["S1"], **how).table
    sdata = as_spatialdata(sections["S1"])
    other = tl.cross_validate(sdata, key_added="cv", **{**how, "genes": sections["S1"].var_names.tolist()[:5]})
    assert other.folds["n_spots"].tolist() == [20, 20]
    assert np.isfinite(sdata["table"][:, sections["S1"].var_names[:5]].layers["cv_gene_mean"]).all()
    assert set(one["fold"]) == set(other.table["fold"]) == {"block 1", "block 2"}


def test_halves_of_one_image_are_told(sections, warned):
    section = sections["S1"]
    right = section.obsm["spatial"][:, 0] > np.median(section.obsm["spatial"][:, 0])
    halves = {"left": section[~right].copy(), "right": section[right].copy(), "S2": sections["S2"]}
    result = tl.cross_validate(halves, methods=["gene_mean"], key_added="cv", **{**HOW, "genes": None})
    assert result.folds["role"].tolist() == ["beside training", "beside training", "held out"]
    assert halves["right"].uns["cv_gene_mean"]["sections"]["role"].tolist() == ["beside training"]
    (message,) = [text for text in warned.messages if "lie beside spots that were trained on" in text]
    assert message.startswith("left, right: ")
    assert "training_neighbours" in message


def test_layers_of_other_tools_are_scored_as_the_methods(sections):
    """Our own prediction, handed in as another tool's, has our own scores."""
    how = {**HOW, "genes": sections["S1"].var_names[:12].tolist(), "methods": {"ridge": METHODS["ridge"]}}
    tl.cross_validate(sections, key_added="cv", **how)
    for section in sections.values():
        section.layers["theirs"] = section.layers.pop("cv_ridge")
        section.layers["fewer"] = section.layers["theirs"].copy()
        section.layers["fewer"][:, 3] = np.nan
    layers = {"other tool": "theirs", "other, fewer genes": "fewer"}
    result = tl.cross_validate(sections, layers=layers, **how)
    keys = ["fold", "section", "gene", "metric"]
    values = {label: rows.set_index(keys)["value"] for label, rows in result.table.groupby("method")}
    np.testing.assert_allclose(
        values["other tool"].loc[values["ridge"].index], values["ridge"], rtol=1e-5, atol=1e-6, equal_nan=True
    )
    assert result.summary()["algorithm"].to_dict() == {
        "ridge": "ridge",
        "other tool": "layers['theirs']",
        "other, fewer genes": "layers['fewer']",
    }
    fewer = values["other, fewer genes"]
    gene = sections["S1"].var_names[3]
    assert fewer.xs(gene, level="gene").isna().all()
    assert result.summary().loc["other, fewer genes", "undefined"] == pytest.approx(1 / 12)
    (row,) = result.comparison().query("reference == 'ridge' and method == 'other tool'").to_dict("records")
    assert row["difference"] == pytest.approx(0, abs=1e-6)
    assert row["n_folds"] == 3


def test_a_layer_without_values_is_named_and_the_others_survive(sections, warned):
    for name, section in sections.items():
        section.layers["theirs"] = np.full(section.shape, np.nan if name == "S2" else 1.0)
    result = tl.cross_validate(sections, methods=["gene_mean"], layers={"other": "theirs"}, **HOW)
    errors = result.folds.query("method == 'other'").set_index("fold")["error"]
    assert "predicts nothing to compare" in errors["S2"]
    assert errors[["S1", "S3"]].eq("").all()
    assert "fold 'S2', layer 'theirs' could not be scored" in warned.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": {"x": {"method": "lasso"}}}, ValueError, r"method='lasso' is not known; there are 'hggep'"),
        (
            {"methods": {"x": {"epochs": 3}}},
            ValueError,
            r"methods\['x'\] has epochs; it may have config, encoder, method",
        ),
        (
            {"methods": {"x": {"method": "ridge", "preset": "paper"}}},
            ValueError,
            r"preset='paper' is one of the network",
        ),
        ({"methods": {"x": {"method": "ridge", "validation": 0.2}}}, ValueError, r"validation= is for method='hggep'"),
        ({"methods": ["hggep"], "validation": "S2"}, ValueError, r"validation='S2' must be a fraction"),
        (
            {"methods": {"hggep": {}, "b": {"preset": "published"}}},
            ValueError,
            r"'hggep': library .*'b': panel .*normalize=",
        ),
        ({"methods": {"hggep": {}, "b": {"config": {"target_sum": 1e3}}}}, ValueError, r"different expression scales"),
        ({"seeds": []}, ValueError, r"seeds=\[\] must be one whole number"),
        ({"seeds": [0, 0]}, ValueError, r"seeds=\[0, 0\] must be .* different ones"),
        ({"seeds": 1.5}, ValueError, r"seeds=1.5 must be one whole number"),
        ({"groups": {"S1": "a", "S2": None, "S3": "b"}}, ValueError, r"no group \(None or NaN\) for S2"),
        ({"methods": []}, ValueError, r"methods=\[\] must be a list of names"),
        ({"methods": "ridge"}, ValueError, r"methods='ridge' must be a list of names"),
        ({"methods": {"ridge": {"method": "hggep"}}}, ValueError, r"a label that is a method's name stands for that"),
        ({"layers": {"other": "absent"}}, KeyError, r"layers\['other'\]: section 'S1' has no layer 'absent'"),
        ({"layers": {"mean": "x"}}, ValueError, r"layers= calls 'mean' what is a method's name"),
        ({"layers": ["x"]}, TypeError, r"layers=\['x'\] must be a dict"),
        ({"groups": "donor"}, KeyError, r"section 'S1' has no such column in obs"),
        ({"groups": "region"}, ValueError, r"must hold one group per section; section 'S1' has \d"),
        ({"groups": {"S1": "a"}}, ValueError, r"no group for S2, S3"),
        ({"only": ["S9"]}, ValueError, r"only=\['S9'\] must name some .* 'S1', 'S2', 'S3'; there is no 'S9'"),
        ({"only": []}, ValueError, r"only=\[\] must name some of the folds: 'S1', 'S2', 'S3'$"),
        ({"n_folds": 4}, ValueError, r"n_folds=4 must be between 2 and the number of sections, 3"),
        ({"genes": ["TUM01", "nothing"]}, KeyError, r"section 'S1'.*nothing"),
        ({"layer": "absent"}, KeyError, r"there is no layer 'absent'"),
        ({"key_added": "a b"}, ValueError, r"the result's key must be letters"),
    ],
)
def test_bad_input_is_refused_before_the_work(sections, options, error, message):
    with pytest.raises(error, match=message):
        tl.cross_validate(sections, **{**HOW, "methods": {"mean": METHODS["mean"]}, **options})


def test_sections_without_counts_are_refused(sections):
    sections["S2"].X = sections["S2"].X * 0
    with pytest.raises(ValueError, match=r"section 'S2' has no counts"):
        tl.cross_validate(sections, methods=["gene_mean"], **HOW)


def test_what_would_fail_after_the_training_fails_before(sections):
    for name, message in {"S1": "non-integer values", "S2": "gene names occur more than once"}.items():
        broken = {key: section.copy() for key, section in sections.items()}
        if name == "S1":
            broken[name].X = broken[name].X.log1p()
        else:
            broken[name].var_names = ["TUM01", *broken[name].var_names[1:-1], "TUM01"]
        with pytest.raises(ValueError, match=message):
            tl.cross_validate(broken, methods=["gene_mean"], **{**HOW, "genes": None})


@pytest.mark.parametrize("kind", [OSError, RuntimeError], ids=["system", "HDF5"])
def test_a_full_disk_costs_the_file_alone(sections, tmp_path, monkeypatch, warned, kind):
    from hggep_sc.cross_validation import FoldStore

    def full(*_):
        raise kind("no space left on device")

    monkeypatch.setattr(FoldStore, "write", full)
    result = tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, path=tmp_path, **HOW)
    assert result.folds["error"].eq("").all()
    assert "could not be stored, and will be run again by the next call: make room in" in warned.text


@pytest.mark.parametrize("genes", [5, [3], "index"])
def test_what_a_stored_fold_holds_is_checked(sections, tmp_path, caplog, genes):
    """Of other sections, without an entry, or no file at all: the fold is run again, and nothing waits."""
    how = {**HOW, "methods": {"mean": METHODS["mean"]}, "path": tmp_path}
    expected = tl.cross_validate(sections, **how)
    (file,) = tmp_path.glob("S2_*.h5ad")
    stored = ad.read_h5ad(file)
    if genes == 5:
        stored[: stored.n_obs - 5].copy().write_h5ad(file)
    elif genes == [3]:
        del stored.uns["records"]
        stored.write_h5ad(file)
    else:
        file.unlink()
        os.mkfifo(file)
    again = tl.cross_validate(sections, **how)
    pd.testing.assert_frame_equal(again.table, expected.table)
    assert f"{file} cannot be read" in caplog.text
    assert file.is_file()


def test_genes_of_a_set_are_one_choice(sections, tmp_path):
    """Whatever order it has in this session."""
    names = list(sections["S1"].var_names[[7, 2, 9, 4]])
    how = {**HOW, "methods": {"mean": METHODS["mean"]}, "path": tmp_path}
    for genes in (set(names), frozenset(names[::-1]), sorted(names), pd.Index(sorted(names)), iter(sorted(names))):
        tl.cross_validate(sections, **{**how, "genes": genes})
        assert len(list(tmp_path.iterdir())) == 3
    fitted = tl.fit(sections, method="gene_mean", **{**HOW, "genes": set(names)})
    assert fitted.genes == sorted(names)


def test_what_is_in_the_way_of_a_layer_is_known_beforehand(sections, monkeypatch):
    monkeypatch.setattr("hggep_sc.tl._cross_validate.run_tasks", lambda *_, **__: pytest.fail("it was run"))
    sections["S2"].layers["cv_mean"] = sections["S2"].X.copy()
    before = {name: section.copy() for name, section in sections.items()}
    with pytest.raises(ValueError, match=r"would replace layers\['cv_mean'\], which is no earlier result"):
        tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, key_added="cv", **HOW)
    for name, section in sections.items():
        assert_same(section, before[name])


def test_a_layer_is_replaced_on_request(sections):
    sections["S2"].layers["cv_mean"] = sections["S2"].X.copy()
    tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, key_added="cv", overwrite=True, **HOW)
    assert sections["S2"].uns["cv_mean"]["method"] == "gene_mean"
    tl.cross_validate(sections, methods={"mean": METHODS["mean"]}, key_added="cv", **HOW)  # its own


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("executor", 5), ("path", 5), ("seeds", "a"), ("seeds", -1), ("seeds", [[0]]), ("seeds", True),
        ("genes", "FASN"), ("genes", 2.5), ("genes", True), ("genes", [1]), ("n_folds", "2"), ("n_folds", 1),
        ("only", 5), ("methods", 5), ("methods", "ridge"), ("methods", {"a": 5}), ("groups", 5),
        ("groups", {None: "a"}), ("mpp", "0.5"), ("mpp", -1), ("mpp", {"S9": 1.0}), ("layer", 5), ("layer", "gone"),
        ("key_added", 5), ("key_added", ""), ("progress", "no"), ("device", 0), ("device", "tpu"), ("overwrite", "no"),
        ("weights", 5), ("spatial_key", 5), ("image_key", 5), ("library_key", 5), ("normalize", "spot"),
    ],
)  # fmt: skip
def test_arguments_are_named(sections, monkeypatch, argument, value):
    monkeypatch.setattr("hggep_sc.cross_validation.run.fit_method", lambda *_, **__: pytest.fail("it was run"))
    before = {name: section.copy() for name, section in sections.items()}
    given = {"methods": ["gene_mean"], "key_added": "cv", **HOW, argument: value}
    with pytest.raises((TypeError, ValueError, KeyError), match=argument):
        tl.cross_validate(sections, **given)
    for name, section in sections.items():
        assert_same(section, before[name])


def test_threads_train_one_after_another(sections, one_run):
    """They share the random state that training draws from."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        result = tl.cross_validate(sections, methods=METHODS, executor=executor, **HOW)
    assert result.folds["model"].tolist() == one_run.folds["model"].tolist()


def test_sections_with_other_genes(sections, warned):
    sections["S2"] = sections["S2"][:, 3:].copy()
    tl.cross_validate(sections, methods=["gene_mean"], **HOW)
    assert "do not hold the same genes (57 of up to 60 in all)" in warned.text
    sections["S2"].var_names = [f"ENSG{i:011d}" for i in range(57)]
    with pytest.raises(ValueError, match=r"have no gene in common.*Ensembl"):
        tl.cross_validate(sections, methods=["gene_mean"], **HOW)


def test_processes_give_the_same(sections, one_run):
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        result = tl.cross_validate(sections, methods=METHODS, executor=executor, **HOW)
    assert_same_but_for_threads(result, one_run)


@pytest.fixture
def cluster():
    import dask
    from distributed import Client, LocalCluster

    patience = dict.fromkeys(("distributed.comm.timeouts.connect", "distributed.comm.timeouts.tcp"), WAIT)
    with (
        dask.config.set(patience),  # of a busy machine; 30 s by themselves
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL) as two,
        Client(two) as client,
    ):
        yield client


def test_a_dask_worker_killed_in_the_middle_loses_no_fold(sections, cluster, tmp_path, one_run):
    import threading

    killed, ended = [], threading.Event()

    def kill_one():
        """As soon as a first fold is stored."""
        while not ended.wait(0.05):
            if any(file.suffix == ".h5ad" for file in tmp_path.iterdir()):
                worker = next(iter(cluster.run(os.getpid).items()))
                os.kill(worker[1], signal.SIGKILL)
                killed.append(worker)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        result = tl.cross_validate(sections, methods=METHODS, executor=cluster.get_executor(), path=tmp_path, **HOW)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1
    assert len(list(tmp_path.glob("*.h5ad"))) == 9
    assert_same_but_for_threads(result, one_run)


@pytest.fixture(scope="module")
def grouped_run(_synthetic):
    """Two folds, of which one has two test sections; the prediction of another tool beside two methods."""
    sections = {name: section.copy() for name, section in _synthetic.items()}
    for section in sections.values():
        library = section.X.toarray().sum(1, keepdims=True)
        section.layers["other"] = np.log1p(1e4 * section.X.toarray() / library) + np.float32(1)
        section.layers["other"][:, 0] = np.nan
    groups = {"S1": "a", "S2": "b", "S3": "a"}
    how = {**HOW, "groups": groups, "layers": {"other tool": "other"}, "genes": sections["S1"].var_names[:12]}
    methods = {"ridge": METHODS["ridge"], "mean": METHODS["mean"]}
    return sections, tl.cross_validate(sections, methods=methods, key_added="cv", **how)


def test_correlations_over_several_sections_and_with_smoothed_targets_are_numpys(grouped_run):
    sections, run = grouped_run
    genes = run.table["gene"].unique()

    def expected(names, smooth):
        predicted, observed = [], []
        for section in (sections[name] for name in names):
            counts = section[:, genes].X.toarray()
            target = np.log1p(1e4 * counts / section.X.toarray().sum(1, keepdims=True))
            if smooth:
                xy = section.obsm["spatial"]
                apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
                spacing = np.median(np.sort(apart, axis=1)[:, 1])
                target = np.stack([target[near].mean(0) for near in apart <= 1.5 * spacing])
            observed.append(target)
            predicted.append(section[:, genes].layers["cv_ridge"])
        p, o = np.concatenate(predicted), np.concatenate(observed)
        return np.mean([np.corrcoef(p[:, j], o[:, j])[0, 1] for j in range(len(genes))])

    for smooth in (False, True):
        fold = run.summary(over="fold", smooth=smooth).loc["ridge"]
        assert fold["mean"] == pytest.approx(
            np.mean([expected(["S1", "S3"], smooth), expected(["S2"], smooth)]), abs=1e-5
        )
        whole = run.summary(over="all", smooth=smooth).loc["ridge"]
        assert whole["mean"] == pytest.approx(expected(["S1", "S2", "S3"], smooth), abs=1e-5)
        assert (whole["n_folds"], whole["over"]) == (1, "all sections of all folds")
        section = run.summary(over="section", smooth=smooth).loc["ridge"]
        of_a = (expected(["S1"], smooth) + expected(["S3"], smooth)) / 2
        assert section["mean"] == pytest.approx((of_a + expected(["S2"], smooth)) / 2, abs=1e-5)
    assert run.summary(over="fold", smooth=True)["target"].eq("smoothed").all()
    other = run.summary(over="fold").loc["other tool"]
    assert other["mean"] == pytest.approx(1, abs=1e-6)  # what it predicts is what was observed, and one more
    assert run.comparison(over="fold").query("method == 'other tool' and reference == 'ridge'")["difference"].item() > 0


def test_sets_of_genes_are_those_of_the_training_sections(grouped_run):
    sections, run = grouped_run
    genes = run.table["gene"].unique()
    expression = {
        name: np.log1p(1e4 * section[:, genes].X.toarray() / section.X.toarray().sum(1, keepdims=True))
        for name, section in sections.items()
    }
    for genes_set, figure in {"HEG4": np.mean, "HVG4": np.var}.items():
        means = []
        for tested, training in ((["S1", "S3"], ["S2"]), (["S2"], ["S1", "S3"])):
            score = np.mean([figure(expression[name], axis=0) for name in training], axis=0)
            best = genes[np.argsort(score)[-4:]]
            of_ridge = run.table[(run.table["method"] == "ridge") & (run.table["metric"] == "pcc")]
            rows = of_ridge[of_ridge["section"].isin(tested) & of_ridge["gene"].isin(best)]
            means.append(rows.groupby("section")["value"].mean().mean())
        summary = run.summary(genes=genes_set)
        assert summary.loc["ridge", "mean"] == pytest.approx(np.mean(means), abs=1e-6)
        assert summary.loc["ridge", "genes"] == f"{genes_set} of the training sections"
        assert np.isfinite(summary.loc["other tool", "mean"])
    with pytest.raises(ValueError, match=r"genes='HMHVG300' needs 300 genes.*'ridge' predicts 12 in fold 'a'"):
        run.summary(genes="HMHVG300")


def test_stored_folds_have_the_same_statistics(sections, tmp_path, one_run):
    how = {**HOW, "methods": {"ridge": METHODS["ridge"]}, "path": tmp_path}
    for _ in range(2):
        run = tl.cross_validate(sections, **how)
    for genes in ("HEG5", "HVG5", "HMHVG5", "HPG5"):
        one, other = (r.summary(genes=genes, over="fold", smooth=True).loc["ridge", "mean"] for r in (run, one_run))
        assert one == pytest.approx(other, abs=1e-4)


def test_a_benchmarks_protocol_brings_its_probe_and_its_way_of_scoring(sections):
    for section in sections.values():
        section.obsm["X_uni"] = np.log1p(section.X.toarray())[:, :20]
    how = {**HOW, "encoder": "X_uni", "groups": {"S1": "a", "S2": "b", "S3": "a"}}
    run = tl.cross_validate(sections, methods=["ridge", "low_rank_ridge"], protocol="hest", **how)
    assert run.folds["method"].unique().tolist() == ["ridge", "low_rank_ridge", "hest_ridge"]
    assert run.folds["error"].eq("").all()
    pd.testing.assert_frame_equal(run.summary(), run.summary(over="fold"))
    assert run.summary()["over"].eq("all sections of a fold").all()
    assert "over" not in run.summary(over="section")
    assert "over" not in run.summary("rmse")
    labelled = tl.cross_validate(sections, methods={"hest_ridge": {}}, protocol="hest", **how)
    assert labelled.summary().loc["hest_ridge", "mean"] == run.summary().loc["hest_ridge", "mean"]
    named = {"mine": {"method": "hest_ridge", "encoder": "X_uni"}}
    probed = tl.cross_validate(sections, methods=named, protocol="hest", **{**how, "encoder": "shufflenet"})
    assert probed.folds["method"].unique().tolist() == ["mine"]
    with pytest.raises(ValueError, match="enc of methods= have their own: give encoder= for all, or name the probe"):
        tl.cross_validate(sections, methods={"enc": {"method": "ridge", "encoder": "X_uni"}}, protocol="hest", **how)
    with pytest.raises(ValueError, match="protocol='best' is not known; there are 'hest'"):
        tl.cross_validate(sections, protocol="best", **how)
