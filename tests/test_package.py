import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import hggep_sc as hggep
from helpers import WAIT

# each takes a good part of a second or more to import, and is needed by some functions alone
HEAVY = ("torch", "lightning", "torch_geometric", "scanpy", "spatialdata", "squidpy", "sklearn", "skimage",
         "matplotlib.pyplot")  # fmt: skip


ROOT = Path(__file__).parent.parent
SITE = "https://hggep-sc.readthedocs.io/en/stable/"


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


def test_links_of_the_readme_lead_to_the_site_from_pypi():
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    readme = (ROOT / "README.md").read_text()
    for change in hooks["fancy-pypi-readme"]["substitutions"]:
        readme = re.sub(change["pattern"], change["replacement"], readme)
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 40
    for link in links:
        assert link.startswith("https://")
        if link.startswith(SITE):
            path = link.removeprefix(SITE).partition("#")[0].replace("_images/", "images/")
            stem = path.removesuffix(".html")
            beside = [ROOT / folder / (stem + suffix) for folder in ("docs", ".") for suffix in ("", ".md", ".ipynb")]
            assert any(page.is_file() for page in beside), link


def test_where_the_repository_lies_is_said_alike():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    listed = (ROOT / "docs" / "contributing" / "meta.yaml").read_text()
    assert re.search(r"^project_home: (\S+)", listed, re.MULTILINE)[1] == urls["Source"]
    assert re.search(r"^documentation_home: (\S+)", listed, re.MULTILINE)[1] == urls["Documentation"]
