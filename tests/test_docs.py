"""Every Python block of README and docs/ runs as it is written, on the data that it names.

What is shortened stands here: presets that train for two epochs on small patches, every fourth spot of real sections
and their reduced image, and stand-ins for what is not at hand: weights, a pathology model, processes and clusters.
"""

import ast
import json
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image, ImageOps
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import hggep_sc as hggep
import space_ranger
from helpers import MeanColour, as_spatialdata
from hggep_sc import _keys, config
from hggep_sc.encoders import registry, weights
from torchvision_stand_in import stand_in

ROOT = Path(__file__).parent.parent
BLOCKS = Sybil([PythonCodeBlockParser(), SkipParser()])
SHORT = {"patch_size": 32, "fields_um": (240.0,), "fields_px": (336.0,), "width": 32, "epochs": 2, "ensemble": 1}
NOT_RUN = {
    "docs/scaling.md": 1,
    "docs/export.md": 2,
    "docs/sharing.md": 1,
}  # how many blocks of a page are marked so; the mark says why

pytestmark = pytest.mark.slow


def run(page, module=None, /, **names):
    """Run a page's blocks one after another, in one namespace that holds the names its text takes for given."""
    document = BLOCKS.parse(ROOT / page)
    if module is not None:
        document.namespace = vars(module)
    document.namespace.update(names, __name__="__main__")
    skipped = 0
    for block in document.examples():
        try:
            block.evaluate()
        except SkipTest:
            skipped += 1
    assert skipped == NOT_RUN.get(page, 0)
    return document.namespace


@pytest.fixture(scope="module")
def real(shared):
    """Every fourth spot of real sections, without the path of the full-resolution image."""
    kept = hggep.settings.dataset_dir
    hggep.settings.dataset_dir = shared / "data"
    sections = hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"])
    hggep.settings.dataset_dir = kept
    for name, section in sections.items():
        del section.uns["spatial"][name]["metadata"]["source_image_path"]
    return {name: section[::4].copy() for name, section in sections.items()}


@pytest.fixture
def short(monkeypatch, shared, real, tmp_path):
    """A folder of its own with the slide, real sections, presets that train in seconds, weights that are at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hggep.settings, "progress", False)
    monkeypatch.setattr(hggep.datasets, "her2st", lambda names: {name: real[name].copy() for name in names})
    monkeypatch.setattr(weights, "_imagenet", lambda: shared / "weights" / "shufflenetv2_x0_5_trunk.pth")
    monkeypatch.setitem(config.PRESETS, "default", SHORT)
    monkeypatch.setitem(config.PRESETS, "paper", {**config.PRESETS["paper"], **SHORT, "fields_um": None, "epochs": 1})
    Path("slide.svs").symlink_to(shared / "data" / "wsi" / "CMU-1-Small-Region.svs")


@pytest.fixture
def pools(monkeypatch):
    """One thread in place of processes, and a cluster inside this process in place of one elsewhere."""
    import concurrent.futures

    import dask.distributed

    def thread(*_, **__):
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", thread)
    mpi = ModuleType("mpi4py.futures")
    mpi.MPIPoolExecutor = thread
    monkeypatch.setitem(sys.modules, "mpi4py", ModuleType("mpi4py"))
    monkeypatch.setitem(sys.modules, "mpi4py.futures", mpi)
    local = partial(dask.distributed.Client, processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None)
    monkeypatch.setattr(dask.distributed, "Client", lambda _: local())


@pytest.fixture
def pathology_model(short, monkeypatch):
    """A small network under the names of some that are downloaded, and folders of weights."""
    small = {
        name: replace(hggep.encoders.info(name), build=lambda _: MeanColour(), hub=None, dimension=3)
        for name in ("uni", "uni2_h", "h_optimus_1")
    }
    monkeypatch.setattr(registry, "_known", {**registry._known, **small})
    for folder in ("UNI", "uni2_h", "h_optimus_1"):
        Path("models", folder).mkdir(parents=True)
    Path("mine.safetensors").touch()


@pytest.fixture
def her2st(short):
    """Four sections, and C5."""
    sections = hggep.datasets.her2st(["B4", "C2", "C3", "C4", "C5"])
    return sections, sections.pop("C5")


@pytest.fixture
def own(short, sections):
    """Sections of one's own: two to train on, and another."""
    return sections, sections.pop("S3")


def test_every_page_is_run():
    here = Path(__file__).read_text()
    built = ROOT / "docs" / "_build"
    pages = [page for page in (ROOT / "docs").rglob("*.md") if built not in page.parents]
    for page in [ROOT / "README.md", *pages]:
        assert "```python" not in page.read_text() or f'run("{page.relative_to(ROOT)}"' in here, page


@pytest.mark.usefixtures("small")
def test_readme():
    names = run("README.md")
    assert {"FASN", "GNAS"} <= set(names["model"].genes)
    assert names["scores"]["pcc"].mean() > 0.1
    assert set(names["cv"].folds["error"]) == {""}
    assert set(names["cv"].folds["fold"]) == {"B4", "C2", "C3", "C4"}


def test_baselines(her2st):
    sections, test = her2st
    names = run("docs/baselines.md", hggep=hggep, sections=sections, test=test)
    assert names["model"].method == "low_rank_ridge"


def test_confidence(own):
    training, section = own
    run("docs/confidence.md", hggep=hggep, training=training, section=section)


@pytest.mark.usefixtures("pools")
def test_cross_validation(own):
    sections, last = own  # two folds
    for section in sections.values():
        section.layers["other"] = np.random.default_rng(0).random(section.shape)
    given = {"sections": sections, "panel": last.var_names[:20], "section": hggep.datasets.synthetic(1, 160)["S1"]}
    names = run("docs/cross_validation.md", hggep=hggep, **given)
    assert set(names["cv"].folds["error"]) == {""}


def test_domains(her2st):
    sections, section = her2st
    model = hggep.tl.fit(sections, method="low_rank_ridge", genes=100)
    hggep.tl.predict(section, model)
    names = run("docs/domains.md", hggep=hggep, section=section)
    assert "observed" in names["section"].obs or "ari" in names["section"].uns["observed"]


@pytest.mark.usefixtures("pathology_model")
def test_encoders(own):
    sections, test = own
    test.obsm["X_uni"] = np.random.default_rng(0).random((test.n_obs, 5))

    def embeddings_of(section):
        return np.random.default_rng(1).random((section.n_obs, 5))

    given = {"embeddings_of": embeddings_of, "MyNetwork": lambda _: MeanColour()}
    names = run("docs/encoders.md", sections=sections, test=test, **given)
    assert names["model"].embeddings == "X_uni"


def test_errors(own, trained, capsys):
    sections, other = own
    sections["S2"].obsm["spatial"][0] = np.nan
    (entry,) = other.uns["spatial"].values()
    inverted = ImageOps.invert(Image.open(entry["metadata"]["source_image_path"]))
    inverted.save("inverted.png")
    entry["metadata"]["source_image_path"] = "inverted.png"
    with warnings.catch_warnings():
        names = run("docs/errors.md", hggep=hggep, slides=sections, model=trained, other=other)
    said = capsys.readouterr().out
    assert "S2 is left out: section 'S2': 1 of 40 spots have NaN or infinite coordinates" in said
    assert "not predicted: section 'S3' looks unlike the training sections" in said
    assert "hggep" in names["slides"]["S1"].layers
    assert "hggep" not in other.layers


def test_evaluation(her2st):
    sections, _ = her2st
    for section in sections.values():
        section.obsm["X_uni"] = np.random.default_rng(0).random((section.n_obs, 9))
    cv = run("docs/evaluation.md", hggep=hggep, sections=sections)["cv"]
    assert set(cv.folds["error"]) == {""}
    assert set(cv.folds["method"]) == {"ridge", "low_rank_ridge", "hggep", "hest_ridge"}


def test_lazyslide(own, monkeypatch):
    """Features of random numbers stand in for those of UNI2."""
    stand_in()
    from spatialdata.models import TableModel
    from wsidata.io import add_features

    sections, test = own
    rng = np.random.default_rng(0)
    for section in (*sections.values(), test):
        section.obsm["uni2_tiles"] = rng.normal(size=(section.n_obs, 5)).astype(np.float32)
    sequenced = as_spatialdata(test)
    features = ad.AnnData(test.obsm["uni2_tiles"], obs=sequenced["table"].obs[["region_name"]].copy())
    features.obs["instance"] = test.obs_names.to_numpy()
    sequenced.tables["counts"] = sequenced.tables.pop("table")
    del sequenced["counts"].obsm["uni2_tiles"]
    sequenced.tables["uni2_tiles"] = TableModel.parse(
        features, region="spots", region_key="region_name", instance_key="instance"
    )

    def features_of(wsi, name):
        add_features(wsi, f"{name}_tiles", "tiles", rng.normal(size=(len(wsi.shapes["tiles"]), 5)).astype(np.float32))

    import lazyslide as zs

    monkeypatch.setattr(zs.tl, "feature_extraction", features_of)
    names = run("docs/lazyslide.md", hggep=hggep, sections=sections, sequenced=sequenced)
    tables = names["wsi"].tables
    assert tables["hggep_tiles"].shape == (len(names["wsi"].shapes["tiles"]), 20)
    assert np.isfinite(tables["hggep_genes"].layers["hggep"]).all()
    plt.close("all")


def test_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(hggep.settings, "cache_dir", tmp_path)
    names = run("docs/measured.md")
    assert names["section"].uns["hggep"]["metrics"]["n_spots"] == names["section"].n_obs * 9 // 10
    assert len(names["scores"]) == 50


def test_methods(own, monkeypatch):
    from hggep_sc.methods import registry

    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setitem(sys.modules, "__main__", page := ModuleType("__main__"))  # where a script's classes are found
    sections, test = own
    for section in (*sections.values(), test):
        section.obsm["X_uni"] = np.random.default_rng(0).random((section.n_obs, 5))
    names = run("docs/methods.md", page, hggep=hggep, sections=sections, test=test)
    assert set(names["cv"].folds["error"]) == {""}
    assert "by_colour" in test.layers


def test_predictability(own):
    sections, _ = own
    names = run("docs/predictability.md", hggep=hggep, sections=sections)
    assert names["genes"]


def test_readers(own):
    sections, section = own
    model = hggep.tl.fit(sections, method="ridge", weights=None, genes=20)
    space_ranger.visium(Path("outs"), section).rename("microscope.tif")
    space_ranger.visium_hd(Path("hd"), section, space_ranger.bins_at((300.0, 320.0), section.var_names))
    space_ranger.xenium(Path("xenium"), section, np.array([[4.7, 0.0, 100.0], [0.0, 4.7, 100.0], [0.0, 0.0, 1.0]]))
    names = run("docs/readers.md", hggep=hggep, model=model)
    assert "hggep" in names["section"].layers
    assert names["sdata"]["table"].uns["hggep"]["sections"]["image"][0] == "images['he_image']"


def test_squidpy(own, trained):
    _, section = own
    sdata = as_spatialdata(section)
    hggep.tl.predict(section, trained)
    names = run("docs/squidpy.md", hggep=hggep, section=section, sdata=sdata, model=trained)
    assert {"spatial_connectivities", "spatial_distances"} == set(section.obsp)
    assert "hggep" in sdata["table"].layers
    assert names["scores"]["moran_predicted"].mean() > names["scores"]["moran_observed"].mean()
    plt.close("all")


def test_sharing(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained.save("her2.hggep")
    assert run("docs/sharing.md", hggep=hggep)["model"].id == trained.id


def test_export(own, trained):
    _, section = own
    sdata = as_spatialdata(section)
    for data in (section, sdata):
        hggep.tl.predict(data, trained)
    run("docs/export.md", hggep=hggep, section=section, sdata=sdata)
    assert len(json.loads(Path("domains.geojson").read_text())["features"]) == 4
    assert Path("outs/spatial/tissue_lowres_image.png").exists()
    stored = zarr.open_group("prediction.zarr", mode="r")  # as Vitessce reads it
    expected = hggep.get.prediction(section)
    np.testing.assert_array_equal(stored["X"][:], expected.X)
    np.testing.assert_array_equal(stored["obsm/spatial"][:], section.obsm["spatial"])
    assert stored["obs/hggep_domain/codes"].shape == (section.n_obs,)
    layer = zarr.open_group("section.zarr", mode="r")["tables/table/layers/hggep"]  # as napari-spatialdata does
    np.testing.assert_array_equal(layer[:], sdata["table"].layers["hggep"])


@pytest.mark.usefixtures("pools")
def test_scaling(own):
    sections, slide = own
    Path("slides").mkdir()
    for name in ("one", "two"):
        slide.write_h5ad(f"slides/{name}.h5ad")
    model = hggep.tl.fit(sections, genes=20)
    names = run("docs/scaling.md", hggep=hggep, sections=sections, model=model)
    assert sorted(path.stem for path in Path("predicted").glob("*.h5ad")) == ["one", "two"]
    assert len(names["table"]) == 2


def test_tiling(her2st):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    sections, _ = her2st
    hggep.tl.fit(sections, genes=["ERBB2", "CD74", "FASN", "GNAS"]).save("model")
    pixels = np.asarray(hggep.pp.tile("slide.svs").uns["spatial"]["slide"]["images"]["hires"]).transpose(2, 0, 1)
    um = 0.499 * 2967 / max(pixels.shape)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"um": Scale([um, um], ("x", "y"))})
    sdata = SpatialData(images={"he": image})
    run("docs/tiling.md", hggep=hggep, sdata=sdata)
    assert "hggep" in sdata["table_tiles"].layers


@pytest.fixture
def small(short, monkeypatch, tmp_path):
    """Synthetic sections of 40 spots, however many are asked for."""
    monkeypatch.setattr(hggep.settings, "cache_dir", tmp_path)
    drawn = partial(hggep.datasets.synthetic, n_spots=40, n_genes=120)
    monkeypatch.setattr(hggep.datasets, "synthetic", lambda n_sections, **_: drawn(n_sections))


@pytest.mark.usefixtures("small")
def test_first_pages(monkeypatch):
    monkeypatch.setattr(hggep.settings, "device", "auto")  # as it is again afterwards
    run("docs/installation.md")
    assert "hggep" in run("docs/index.md")["test"].layers
    names = run("docs/tutorial.md")
    assert names["test"].uns["hggep_domain"]["n_domains"] == 5
    assert names["model"].genes == names["ridge"].genes


@pytest.fixture
def spatialdata_io(monkeypatch):
    """The readers' place, where there is a small object for each."""
    module = ModuleType("spatialdata_io")
    monkeypatch.setitem(sys.modules, "spatialdata_io", module)
    return module


def test_visium(own, monkeypatch):
    import squidpy as sq

    sections, last = own
    at_hand = {"P1": sections["S1"], "P2": sections["S2"], "P3": last}
    monkeypatch.setattr(sq.read, "visium", lambda path, **_: at_hand[Path(path).parts[0]])
    assert len(run("docs/howto/visium.md")["scores"])


def test_visium_hd_and_xenium(own, spatialdata_io):
    _, section = own
    spatialdata_io.visium_hd = lambda *_, **__: as_spatialdata(section)
    run("docs/howto/visium_hd.md")
    sdata = as_spatialdata(section)
    sdata.images["he_image"] = sdata.images.pop("he")
    spatialdata_io.xenium = lambda *_, **__: sdata
    run("docs/howto/xenium.md")
    assert "hggep" in sdata["table"].layers


def test_plain_files(own, real):
    _, section = own
    (entry,) = section.uns["spatial"].values()
    Path("he.png").symlink_to(entry["metadata"]["source_image_path"])
    section.to_df().to_csv("counts.csv")
    pd.DataFrame(section.obsm["spatial"], section.obs_names, ["x", "y"]).to_csv("places.csv")
    assert run("docs/howto/image_and_table.md")["model"].mpp == 1.0

    array = real["C5"]
    (entry,) = array.uns["spatial"].values()
    Image.fromarray(entry["images"]["hires"]).save("array.png")
    Path("he.png").unlink()
    Path("array.png").rename("he.png")
    array.to_df().to_csv("counts.tsv", sep="\t")
    px = array.obsm["spatial"] * entry["scalefactors"]["tissue_hires_scalef"]
    spots = array.obs[["array_col", "array_row"]].set_axis(["x", "y"], axis=1)
    spots.assign(pixel_x=px[:, 0], pixel_y=px[:, 1]).to_csv("spots.tsv", sep="\t")
    names = run("docs/howto/legacy_st.md")
    assert names["model"].spacing_um == pytest.approx((200, 200), rel=0.05)


def test_patients(own):
    sections, last = own
    cv = run("docs/howto/patients.md", sections={**sections, "S3": last})["cv"]
    assert set(cv.folds["error"]) == {""}
    assert cv.folds["fold"].nunique() == 2  # two patients


def test_concepts(own):
    sections, section = own
    names = run("docs/concepts/ridge.md", sections=sections, test=section)
    assert "ridge" in section.layers
    run("docs/concepts/scale.md", section=section, model=names["model"])
    assert list(section.uns["hggep"]["sections"]["mpp_source"]) == ["mpp="]


def test_reference(monkeypatch):
    run("docs/api/index.md")
    monkeypatch.setattr(hggep.settings, "progress", True)  # as it is again afterwards
    run("docs/reference/settings.md")
    assert hggep.settings.skip_checks == frozenset()
    assert not hggep.settings.progress


def messages():
    """All texts of the package's sources, with gaps where values are filled in."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_that_are_explained_exist():
    page = (ROOT / "docs" / "faq.md").read_text()
    explained = re.findall(r"^`(.+)`\n: ", page, re.MULTILINE)
    assert len(explained) > 20
    known = "\n".join(messages())
    assert [message for message in explained if message not in known] == []


def test_every_written_slot_is_explained():
    page = (ROOT / "docs" / "outputs.md").read_text()
    derived = [name for name, value in vars(_keys).items() if callable(value) and name != "metric"]
    names = [vars(_keys)[name](_keys.KEY) for name in derived] + [_keys.QUALITY, _keys.DOMAIN, _keys.SLIDE]
    names += [_keys.metric(_keys.KEY, figure) for figure in _keys.METRICS]
    assert [name for name in names if f'["{name}"]' not in page] == []
