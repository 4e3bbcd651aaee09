"""Packages that users have, built for another torch: stand-ins that fail as those do."""

import os
import subprocess
import sys
from importlib import import_module, invalidate_caches

import pytest

from helpers import WAIT
from hggep_sc.runtime.imports import naming_what_is_broken


def stand_in(folder, name, *, error, requires="torch (==2.4.0)", through=None):
    """A package that fails when it is imported; `through` is one that imports it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"import textwrap\nraise {error}\n")
    about = folder / f"{name}-99.1.0.dist-info"
    about.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.1.0\n{needs}")
    if through is not None:
        (folder / through).mkdir()
        (folder / through / "__init__.py").write_text(f"import {name}\n")
    return folder


def import_failing(name):
    invalidate_caches()
    with pytest.raises(ImportError) as raised, naming_what_is_broken("lightning"):
        import_module(name)
    return raised.value


@pytest.mark.parametrize("requires", ["torch (==2.4.0)", "torch==2.4.0; extra == 'x'", "torch ==2.4.0"])
def test_what_is_broken_is_named_with_version_and_remedy(tmp_path, monkeypatch, requires):
    error = "RuntimeError('operator other::nms does not exist\\nsecond line')"
    monkeypatch.syspath_prepend(stand_in(tmp_path, "broken_one", error=error, requires=requires, through="passed_on"))
    raised = import_failing("passed_on")
    assert "lightning cannot be imported: it imports broken_one 99.1.0, built for torch ==2.4.0, while" in str(raised)
    assert "RuntimeError: operator other::nms does not exist. hggep_sc does not need broken_one" in str(raised)
    assert "pip uninstall broken_one" in str(raised)
    assert raised.__suppress_context__


@pytest.mark.parametrize("error", ["OSError('undefined symbol')", "AttributeError('partially initialised')"])
def test_other_kinds_of_failures(tmp_path, monkeypatch, error):
    monkeypatch.syspath_prepend(stand_in(tmp_path, "broken_two", error=error, requires="torchaudio"))
    raised = import_failing("broken_two")
    assert f"broken_two 99.1.0, which fails: {error.partition('(')[0]}" in str(raised)
    assert "built for" not in str(raised)


def test_a_package_without_a_record(tmp_path, monkeypatch):
    (tmp_path / "broken_three.py").write_text("raise ValueError()")
    monkeypatch.syspath_prepend(tmp_path)
    assert "it imports broken_three, which fails: ValueError: no message." in str(import_failing("broken_three"))


def test_what_is_not_there_at_all_is_left_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), naming_what_is_broken("lightning"):
        import_module("no_such_package")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "transformers"])
def test_libraries_that_others_import_where_they_are_there(tmp_path, name):
    folder = stand_in(tmp_path, name, error=f"RuntimeError('operator {name}::nms does not exist')")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", "import hggep_sc; hggep_sc.tl"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert f"cannot be imported: it imports {name} 99.1.0, built for torch" in done.stderr
    assert done.stderr.count("Traceback") == 1
