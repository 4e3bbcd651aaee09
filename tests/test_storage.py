"""Folders of models; crashes and damage are tested with the models themselves."""

import json

import numpy as np
import pytest
import torch

from hggep_sc.storage import CLASSES, IncompleteError, load_model, save_model


class Model:
    method = "hggep"
    id = "0123456789ab"

    def __init__(self, values):
        self.values = values

    def save(self, path, **settings):
        tensors = {"network": {"values": torch.as_tensor(self.values)}}
        content = {"genes": ["A"]}
        save_model(path, method=self.method, model_id=self.id, content=content, tensors=tensors, overwrite=False)

    @classmethod
    def load(cls, path):
        return load_model(path, method=cls.method, rebuild=lambda _, tensors: cls(tensors["network"]["values"]))


def edit(path, **changes):
    content = json.loads((path / "model.json").read_text()) | changes
    (path / "model.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_round_trip(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    assert Model.load(tmp_path / "m").values.tolist() == [0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "network-0123456789ab.safetensors"]


def test_folders_from_before_methods_were_named(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", method=None)
    assert "method" not in json.loads((tmp_path / "m" / "model.json").read_text())
    Model.load(tmp_path / "m")


def test_method_of_a_later_version(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", method="oracle")
    with pytest.raises(ValueError, match="method 'oracle', not 'hggep': this version does not know it"):
        Model.load(tmp_path / "m")


def test_format_of_a_later_version(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", format=3)
    with pytest.raises(ValueError, match=r"has format 3.*reads format 2: update the package"):
        Model.load(tmp_path / "m")


def test_format_of_an_earlier_version(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", format=1)
    with pytest.raises(ValueError, match=r"has format 1.*reads format 2: fit the model again"):
        Model.load(tmp_path / "m")


def test_what_the_caller_left_out_is_no_damage(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")

    def rebuild(content, tensors):
        raise IncompleteError("give it with load(..., encoder=module)")

    with pytest.raises(ValueError, match=r"the model in .*m: give it with load") as raised:
        load_model(tmp_path / "m", method="hggep", rebuild=rebuild)
    assert "damaged" not in str(raised.value)


def test_another_models_id(tmp_path):
    Model(np.arange(3.0)).save(tmp_path / "m")
    edit(tmp_path / "m", id="ba9876543210")
    with pytest.raises(ValueError, match="not those that were saved together as ba9876543210"):
        Model.load(tmp_path / "m")


def test_classes_are_there():
    from importlib import import_module

    for method, name in CLASSES.items():
        room, _, kind = name.rpartition(".")
        assert getattr(import_module(room), kind).method == method
