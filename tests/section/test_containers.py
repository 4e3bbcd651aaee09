"""What is said of a thing that is no section."""

import numpy as np
import pytest

import hggep_sc as hggep


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("x.svs", r"hggep_sc\.pp\.tile\('x\.svs', model=model\)"),
        ("x.h5ad", r"read it first, by anndata\.read_h5ad\('x\.h5ad'\)"),
        ("x.zarr", r"read it first, by spatialdata\.read_zarr\('x\.zarr'\)"),
        (np.zeros((4, 4, 3)), r"found ndarray: .*pp\.tile\(image, model=model"),
        (3, "found int$"),
    ],
)
def test_the_way_to_a_section_is_named(trained, given, match) -> None:
    for call in (
        lambda: hggep.tl.predict(given, trained),
        lambda: hggep.tl.fit([given]),
        lambda: hggep.tl.fit({"a": given}),
        lambda: hggep.tl.evaluate(given),
        lambda: hggep.tl.domains(given),
    ):
        with pytest.raises(TypeError, match=match):
            call()
