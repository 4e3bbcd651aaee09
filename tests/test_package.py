import subprocess
import sys
from importlib.metadata import version

import hggep_sc as hggep
from helpers import WAIT

# each takes a good part of a second or more to import, and is needed by some functions alone
HEAVY = ("torch", "lightning", "torch_geometric", "scanpy", "spatialdata", "squidpy", "sklearn", "skimage",
         "matplotlib.pyplot")  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT)
    return set(done.stdout.split())


def test_import_is_light():
    modules = loaded_by("import hggep_sc")
    assert "hggep_sc" in modules
    assert modules.isdisjoint(HEAVY), sorted(modules.intersection(HEAVY))


def test_looking_at_names_is_light():
    modules = loaded_by("import hggep_sc; dir(hggep_sc); hggep_sc.settings; hggep_sc.Config()")
    assert "hggep_sc.config" in modules
    assert modules.isdisjoint(HEAVY), sorted(modules.intersection(HEAVY))


def test_listing_data_sets_is_light():
    modules = loaded_by("import hggep_sc; hggep_sc.datasets.synthetic")
    assert modules.isdisjoint({"torch", "lightning", "spatialdata"})


def test_model_loads_on_first_use():
    assert "torch" in loaded_by("import hggep_sc; hggep_sc.HGGEP")


def test_version_is_the_distribution_s():
    assert hggep.__version__ == version("hggep-sc")


def test_every_public_name_resolves():
    assert {"HGGEP", "datasets", "get", "pl", "pp", "settings", "tl"} <= set(hggep.__all__)
    for name in hggep.__all__:
        getattr(hggep, name)
    for room in (hggep.datasets, hggep.interop, hggep.pl, hggep.pp, hggep.tl):
        for name in room.__all__:
            assert callable(getattr(room, name)), f"{room.__name__}.{name}"
    assert callable(hggep.get.prediction)


def test_dir_lists_the_public_names():
    assert set(hggep.__all__) <= set(dir(hggep))


def test_unknown_name_is_refused():
    assert not hasattr(hggep, "no_such_name")
