import numpy as np
import pytest
import scanpy as sc

import hggep_sc as hggep


def test_ready_for_scanpy(sections, trained):
    section = sections["S3"]
    section.obsm["table"] = section.obs[["array_col"]].copy()
    hggep.tl.predict(section, trained, device="cpu", progress=False)
    genes = hggep.get.prediction(section)
    assert genes.shape == (40, 20)
    assert set(genes.var_names) == set(trained.genes)
    assert np.array_equal(genes.X, section[:, genes.var_names].layers["hggep"])
    assert genes.obs["region"].equals(section.obs["region"])
    assert {"spatial", "X_hggep"} <= set(genes.obsm)
    sc.pp.pca(genes, n_comps=3)
    assert np.isfinite(genes.obsm["X_pca"]).all()
    genes.X[:] = 0
    genes.obsm["spatial"][:] = 0
    assert np.nanmax(section.layers["hggep"]) > 0
    assert section.obsm["spatial"].max() > 0
    genes.uns["spatial"]["S3"]["scalefactors"].clear()
    assert section.uns["spatial"]["S3"]["scalefactors"]


def test_no_prediction(sections):
    with pytest.raises(KeyError, match=r"tl\.predict"):
        hggep.get.prediction(sections["S3"])
