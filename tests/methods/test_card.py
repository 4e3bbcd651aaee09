"""The card in a model's folder."""

import numpy as np
import pytest
import yaml

from helpers import CPU, TINY
from hggep_sc import methods, tl


def card_of(model, folder):
    model.save(folder)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "hggep-sc"
    return text


def test_it_tells_the_models_own_facts(sections, tmp_path):
    training = {name: sections[name] for name in ("S1", "S2")}
    model = tl.fit(training, genes=12, config={**TINY, "cross_fit": True}, **CPU)
    text = card_of(model, tmp_path / "m")
    pcc = model.confidence.reliability
    best = int(np.nanargmax(pcc))
    for fact in (model.id, "12 genes", "'S1', 'S2'", "shufflenet", f"{np.nanmean(pcc):.2f}"):
        assert fact in text
    assert f"Best: {model.genes[best]} {pcc[best]:.2f}" in text


def test_licence_of_an_encoder_that_is_not_in_the_folder(sections, tmp_path):
    how = {"method": "ridge", "genes": 12, "device": "cpu", "progress": False}
    small = {"fields_um": (60.0,), "fields_px": (60.0,)}
    named = tl.fit({"S1": sections["S1"]}, encoder="efficientnet_lite0", config=small, **how)
    assert "`efficientnet_lite0`; licence of its weights: Apache-2.0), not in this folder" in card_of(
        named, tmp_path / "m"
    )
    sections["S1"].obsm["X_emb"] = np.random.default_rng(0).normal(size=(40, 5))
    embedded = tl.fit({"S1": sections["S1"]}, encoder="X_emb", **how)
    assert 'embeddings in `obsm["X_emb"]`' in card_of(embedded, tmp_path / "e")


def test_one_that_somebody_wrote_stays(trained, tmp_path):
    trained.save(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("mine")
    trained.save(tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "README.md").read_text() == "mine"
    assert methods.load(tmp_path / "m").id == trained.id
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("no model")
    with pytest.raises(FileExistsError, match="not an hggep_sc model"):
        trained.save(tmp_path / "notes", overwrite=True)
