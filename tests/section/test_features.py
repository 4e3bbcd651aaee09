"""Embeddings of a SpatialData that lie in another table of the same shapes."""

import numpy as np
import pytest
from anndata import AnnData
from spatialdata.models import TableModel

import hggep_sc as hggep
from helpers import TINY, as_spatialdata
from hggep_sc.section import open_sections


@pytest.fixture
def sdata(sections):
    """Features of the spots in an order of their own, and of a spot of other shapes."""
    sdata = as_spatialdata(sections["S1"])
    rng = np.random.default_rng(5)
    names = rng.permutation(np.append(sdata["spots"].index.to_numpy(), "elsewhere"))
    table = AnnData(rng.normal(size=(len(names), 6)).astype(np.float32))
    table.obs["which"] = names
    table.obs["of"] = np.where(names == "elsewhere", "others", "spots")
    table.obs["of"] = table.obs["of"].astype("category")
    sdata.shapes["others"] = sdata["spots"][:1].set_axis(["elsewhere"])
    regions = ["spots", "others"]
    sdata["emb"] = TableModel.parse(table, region=regions, region_key="of", instance_key="which")
    return sdata


def of_spots(sdata, names):
    table = sdata["emb"]
    return table.X[[table.obs["which"].tolist().index(name) for name in names]]


def test_features_are_matched_by_instance(sdata):
    (section,) = open_sections(sdata, table_key="table", mpp=1.0)
    names = sdata["table"].obs_names
    np.testing.assert_array_equal(section.embeddings("emb"), of_spots(sdata, names))
    some = section.subset(np.array([7, 2, 30]))
    np.testing.assert_array_equal(some.embeddings("emb"), of_spots(sdata, names[[7, 2, 30]]))
    light = some.portable(["emb"])
    np.testing.assert_array_equal(light.embeddings("emb"), some.embeddings("emb"))
    assert not light.beside


def test_a_slot_of_the_same_name_comes_first(sdata):
    sdata["table"].obsm["emb"] = np.zeros((40, 2))
    (section,) = open_sections(sdata, table_key="table", mpp=1.0)
    assert section.embeddings("emb").shape == (40, 2)


def test_folds_see_them(sdata, sections):
    """Another process gets the features with the spots."""
    plain = sections["S2"]
    plain.obsm["emb"] = np.random.default_rng(0).normal(size=(plain.n_obs, 6))
    how = {"methods": ["ridge"], "table_key": "table", "mpp": {"a": 1.0}, "genes": 5, "progress": False}
    result = hggep.tl.cross_validate({"a": sdata, "b": plain}, encoder="emb", **how)
    assert set(result.folds["error"]) == {""}


def test_features_that_do_not_fit(sdata):
    one, other = sdata["spots"].index[3:5]
    sdata["emb"].obs["which"] = sdata["emb"].obs["which"].replace(one, other)
    (section,) = open_sections(sdata, table_key="table", mpp=1.0)
    with pytest.raises(ValueError, match=r"tables\['emb'\]\.X holds an instance of 'spots' more than once"):
        section.embeddings("emb")
    with pytest.raises(KeyError, match=r"no embeddings in obsm\['none'\].* other tables of 'spots' are 'emb'"):
        section.embeddings("none")
    with pytest.raises(KeyError, match=r"no table of this name beside it \('emb'\); nor is there an encoder"):
        hggep.tl.fit(sdata, encoder="none", table_key="table", mpp=1.0, config=TINY)
