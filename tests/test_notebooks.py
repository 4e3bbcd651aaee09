import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import TINY_RIVALS, WAIT

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def committed(name, n_images):
    """Read a notebook, whose committed copy holds outputs, pictures, no error and nothing of the machine."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= n_images
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return notebook, cells, parameters


def run(notebook, folder):
    NotebookClient(notebook, timeout=WAIT, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.slow
def test_first_steps_runs(tmp_path):
    """Every cell runs, with few spots and epochs."""
    notebook, cells, parameters = committed("first_steps.ipynb", 3)
    parameters.source = "N_SPOTS, EPOCHS = 40, 1"
    run(notebook, tmp_path)
    scores = next(cell for cell in cells if "tl.evaluate" in cell.source)
    assert "mean_pcc" in scores.outputs[0]["text"]
    assert list(tmp_path.iterdir()) == []


SMALL = """
ONE_FIELD = {"patch_size": 32, "fields_um": (240.0,), "fields_px": (336.0,)}
SMALL = {**ONE_FIELD, "width": 32, "epochs": 2, "ensemble": 1}
"""
# a quarter of the spots, at low resolution
THINNED = f"""{SMALL}
import os
from pathlib import Path

hggep.settings.dataset_dir = Path(os.environ["HGGEP_SHARED"]) / "data"
whole = hggep.datasets.her2st


def thinned(names):
    sections = {{name: section[::4].copy() for name, section in whole(names).items()}}
    for name, section in sections.items():
        del section.uns["spatial"][name]["metadata"]["source_image_path"]
    return sections


hggep.datasets.her2st = thinned
FOLDS = "folds"
"""
METHODS = """
METHODS = {
    "gene mean": {"method": "gene_mean"},
    "low-rank ridge": {"method": "low_rank_ridge", "config": ONE_FIELD},
    "HGGEP": {"config": SMALL},
}
"""
HER2ST = """
STUDY, SECTIONS, DOMAINS_ON = "her2st", ["C2", "C3"], "C2"
GENES, GROUPS = hggep.datasets.her2st_panel(), None
"""
CSCC = """
STUDY, SECTIONS, DOMAINS_ON = "cscc", None, "P2_ST_rep1"
GENES, GROUPS = 60, "patient"
stand_ins = {}
for patient, (name, section) in zip(("P2", "P5"), thinned(["C2", "C3"]).items(), strict=True):
    section.obs["patient"] = patient
    section.obs = section.obs.drop(columns=["cluster", "region"], errors="ignore")
    section.uns["spatial"] = {f"{patient}_ST_rep1": section.uns["spatial"][name]}
    stand_ins[f"{patient}_ST_rep1"] = section
hggep.datasets.cscc = lambda names: stand_ins
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("study", [HER2ST, CSCC], ids=["her2st", "cscc"])
def test_paper_analysis_runs(tmp_path, study):
    """Every cell runs, on two sections, thinned and at low resolution, with a network that hardly learns."""
    notebook, cells, parameters = committed("paper_analysis.ipynb", 8)
    parameters.source = THINNED + METHODS + study
    run(notebook, tmp_path)
    assert len(list((tmp_path / "folds").glob("*.h5ad"))) == 6
    domains = next(cell for cell in cells if "tl.domains" in cell.source)
    assert ("ari_pval" in domains.outputs[0]["data"]["text/plain"]) == (study is HER2ST)


SLIDE = """
SECTIONS, HELD_OUT, GENES, CONFIG = ["C2"], "C3", 20, SMALL
SPACING_UM, OUT = 100, Path("results")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_unsequenced_slide_runs(tmp_path):
    """Every cell runs on the real slide, by a network that hardly learnt: it is warned of, and domains are written."""
    notebook, cells, parameters = committed("unsequenced_slide.ipynb", 4)
    parameters.source = THINNED + SLIDE
    run(notebook, tmp_path)
    predicted = next(cell for cell in cells if "tl.predict(slide" in cell.source)
    assert "UnlikeTrainingWarning" in predicted.outputs[0]["text"]
    regions = json.loads((tmp_path / "results" / "domains.geojson").read_text())["features"]
    assert len(regions) == 4
    assert (tmp_path / "results" / "her2.hggep" / "README.md").is_file()


@pytest.mark.slow
def test_visium_and_squidpy_runs(tmp_path):
    """Every cell runs on small folders: both readers give the same prediction, and what is amiss is warned of."""
    notebook, cells, parameters = committed("visium_and_squidpy.ipynb", 3)
    parameters.source = f'{SMALL}\nN_SPOTS, BINS, CONFIG, DATA = 60, 8, SMALL, Path("folders")'
    run(notebook, tmp_path)
    without, of_both, in_bins = (
        next(cell for cell in cells if call in cell.source) for call in ("tl.predict(without", "of_sdata", "visium_hd(")
    )
    assert "a reduced copy that shows less of the cells" in without.outputs[0]["text"]
    assert float(of_both.outputs[0]["data"]["text/plain"]) <= 1e-5
    assert "its spots lie 16 um apart" in in_bins.outputs[0]["text"]


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_is_it_any_good_runs(tmp_path):
    """Every cell runs, on thinned sections at low resolution; what is unlike training is said."""
    notebook, cells, parameters = committed("is_it_any_good.ipynb", 5)
    parameters.source = THINNED + METHODS
    run(notebook, tmp_path)
    assert len(list((tmp_path / "folds").glob("*.h5ad"))) == 9
    (predicts,) = (cell for cell in cells if "hggep.tl.predict(bulb, model)" in cell.source)
    said = "".join(output["text"] for output in predicts.outputs)
    assert "UnlikeTrainingWarning: section 'MOB1'" in said, said


@pytest.mark.slow
def test_your_own_encoder_and_method_runs(tmp_path):
    """Every cell runs, with few spots, epochs and trees, and leaves nothing behind."""
    notebook, cells, parameters = committed("your_own_encoder_and_method.ipynb", 1)
    parameters.source = "N_SPOTS, GENES, EPOCHS, TREES = 40, 12, 1, 5"
    run(notebook, tmp_path)
    summary = next(cell for cell in cells if "cv.summary()" in cell.source)
    assert "HGGEP, stains" in summary.outputs[0]["data"]["text/plain"]
    assert list(tmp_path.iterdir()) == []


EYES = {"encoder": "efficientnet_lite0"}
ONE_EPOCH = {"epochs": 1}
RIVALS = {
    "ST-Net, equal eyes": {"method": "stnet", **EYES, "config": {**ONE_EPOCH, "inner_folds": None}},
    "BLEEP, equal eyes": {"method": "bleep", **EYES, "config": ONE_EPOCH},
    "DeepPT, equal eyes, short": {"method": "deeppt", **EYES, "config": {**ONE_EPOCH, "autoencoder_epochs": 1}},
    "HisToGene, small": {"method": "histogene", "config": TINY_RIVALS["histogene"]},
    "Hist2ST, small": {"method": "hist2st", "config": TINY_RIVALS["hist2st"]},
    "THItoGene, small": {"method": "thitogene", "config": TINY_RIVALS["thitogene"]},
}


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_rivals_runs(tmp_path):
    """Every cell runs, on two thinned sections, with networks that hardly learn; all six rivals are there."""
    notebook, cells, parameters = committed("rivals.ipynb", 4)
    parameters.source = f'{THINNED}{METHODS}SECTIONS = ["C2", "C3"]\ndel METHODS["gene mean"]\nMETHODS |= {RIVALS!r}'
    run(notebook, tmp_path)
    assert len(list((tmp_path / "folds").glob("*.h5ad"))) == 2 * 8
    summary = next(cell for cell in cells if "cv.summary()" in cell.source)
    assert all(label in summary.outputs[-1]["data"]["text/plain"] for label in RIVALS)
