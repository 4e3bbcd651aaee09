"""What the rivals that see each spot by itself share: another encoder's features, and what they learn of them."""

import numpy as np
import pytest

from helpers import CPU, TINY_SPOT_RIVALS
from hggep_sc import methods, tl
from hggep_sc.metrics import pearson
from hggep_sc.section import open_sections

LEARNING = {
    "stnet": {"epochs": 30, "learning_rate": 1e-3},
    "bleep": {"epochs": 60, "learning_rate": 3e-3, "width": 32, "n_matches": 10},
    "deeppt": {"epochs": 100, "autoencoder_epochs": 50, "learning_rate": 1e-2, "hidden": 16},
}
rivals = pytest.mark.parametrize("name", TINY_SPOT_RIVALS)


def embedded(sections, informative):
    """Embeddings that tell the log expression of ten genes, mixed; or nothing."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 24))
    for section in sections.values():
        seen = np.log1p(np.asarray(section.X[:, :10].todense()))
        told = np.maximum(seen @ mixing, 0) if informative else rng.random((section.n_obs, 24))
        section.obsm["X_emb"] = told.astype(np.float32)
    return sections


@rivals
@pytest.mark.parametrize("informative", [True, False])
def test_learns_what_an_encoder_tells(name, informative, sections):
    sections = embedded(sections, informative)
    genes = sections["S1"].var_names[:10].tolist()
    config = {**TINY_SPOT_RIVALS[name], **LEARNING[name]}
    training = {key: sections[key] for key in ("S1", "S2")}
    how = {"encoder": "X_emb", "genes": genes, "device": "cpu", "progress": False}
    model = tl.fit(training, method=name, config=config, **how)
    (test,) = open_sections({"S3": sections["S3"]}, looks=False)
    truth = model.scale.transform(test.counts(genes), test.library())
    found = np.nanmean(pearson(model.predict(test, device="cpu")[0], truth))
    assert found > 0.4 if informative else found < 0.25


@rivals
def test_no_chunks_of_a_section_as_spots_do_not_see_each_other(name, sections):
    assert "chunk_spots" not in methods.get(name).takes
    how = {"config": TINY_SPOT_RIVALS[name], "genes": 8, **CPU}
    model = tl.fit({"S1": sections["S1"]}, method=name, **how)
    whole = sections["S3"].copy()
    tl.predict(whole, model, device="cpu")
    one = sections["S3"][:1].copy()
    tl.predict(one, model, device="cpu")
    np.testing.assert_allclose(one.layers["hggep"], whole.layers["hggep"][:1], rtol=1e-4, atol=1e-5)
