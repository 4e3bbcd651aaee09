"""What is taken for one section and is several is refused; names that only look like it pass."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import hggep_sc as hggep
from helpers import make_adata
from hggep_sc.section import open_sections


def named(names, **obs):
    """A section whose spots have these names."""
    adata = make_adata()[: len(names)].copy()
    adata.obs_names = names
    for column, values in obs.items():
        adata.obs[column] = values
    return adata


def barcodes(n, seed=0):
    letters = np.random.default_rng(seed).choice(list("ACGT"), (n, 16))
    return ["".join(row) for row in letters]


def test_barcodes_that_occur_twice_are_seen_through_what_was_appended() -> None:
    ten = barcodes(10)
    for first, second in (("-1-0", "-1-1"), ("-1", "-2"), ("-1-S1", "-1-S2"), ("_a", "_b")):
        names = [f"{code}{first}" for code in ten] + [f"{code}{second}" for code in ten]
        with pytest.raises(ValueError, match=r"10 of 20 spots have the barcode .*library_key='sample'.*'one_section'"):
            open_sections(named(names, sample=["x"] * 10 + ["y"] * 10))
    prefixed = [f"S1_{code}-1" for code in ten] + [f"S2_{code}-1" for code in ten]
    with pytest.raises(ValueError, match="have the barcode"):
        open_sections(named(prefixed))
    bins = [f"s_008um_{i:05}_00001-1" for i in range(10)]
    with pytest.raises(ValueError, match="have the barcode"):
        open_sections(named([f"{name}-{number}" for number in (0, 1) for name in bins]))
    hggep.settings.skip_checks = {"one_section"}
    try:
        assert len(open_sections(named(names))[0].xy) == 20
    finally:
        hggep.settings.skip_checks = frozenset()


def test_names_that_are_no_barcodes_pass() -> None:
    for names in (
        [f"{x}x{y}" for x in range(5) for y in range(4)],
        [f"{code}-1" for code in barcodes(20)],
        [f"cell{i}-1" for i in range(20)],
        [f"aaaa{chr(97 + i)}bcd-1" for i in range(20)],  # Xenium
        [str(i) for i in range(20)],
        [f"GATTACAGATTACA_{i}" for i in range(19)] + ["other"],  # not all are barcodes
    ):
        (section,) = open_sections(named(names))
        assert len(section.xy) == 20


def test_the_same_name_or_array_position_twice() -> None:
    names = [str(i) for i in range(10)] * 2
    adata = named(names)
    with pytest.raises(ValueError, match="10 of 20 spots have the name of another spot"):
        open_sections(adata)
    places = {"array_row": np.tile(np.arange(10), 2), "array_col": 3}
    adata = named([f"s{i}" for i in range(20)], **places, batch=pd.Categorical(["a"] * 10 + ["b"] * 10))
    with pytest.raises(
        ValueError, match=r"array position of another spot \(such as array_col 3, array_row 0\).*'batch'"
    ):
        open_sections(adata)
    adata.obs["in_tissue"] = [1] * 10 + [0] * 10  # only what is taken counts
    assert len(open_sections(adata)[0].xy) == 10
    adata = named([f"s{i}" for i in range(20)], array_row=0, array_col=0)  # no positions
    assert len(open_sections(adata)[0].xy) == 20


def test_the_way_out_is_named_and_works() -> None:
    first, second = make_adata("A", 1), make_adata("B", 2)
    both = ad.concat([first, second], uns_merge="unique")
    both.obs["array_row"], both.obs["array_col"] = np.tile(np.arange(30), 2), 0
    both.obs["n_counts"] = np.arange(60)  # a column that has a value of its own for each spot tells nothing
    both.obs["kind"] = ["a", "b"] * 30
    both.obs["library"] = ["A"] * 30 + ["B"] * 30
    both.obsm["spatial"] = both.obsm["spatial"] + np.repeat([[0.0], [0.5]], 30, axis=0)
    with pytest.raises(ValueError, match="`library_key='library'`"):
        open_sections(both, library_id="A")
    assert [len(section.xy) for section in open_sections(both, library_key="library")] == [30, 30]
    del both.uns["spatial"]["B"]
    with pytest.raises(
        ValueError, match=r"each section its own library.*'A', 'B'; there is 'A'.*library_key='library'"
    ):
        open_sections(both)
    del both.obs["library"]
    with pytest.raises(ValueError, match="No column of obs tells them apart"):
        open_sections(both)


@pytest.mark.parametrize("call", ["fit", "cross_validate"])
def test_it_is_refused_before_training(call, sections) -> None:
    both = ad.concat({"S1": sections["S1"], "S2": sections["S2"]}, label="sample", index_unique="-", uns_merge="first")
    both.uns["spatial"] = {"S1": both.uns["spatial"]["S1"]}
    how = {"method": "gene_mean"} if call == "fit" else {"methods": ["gene_mean"]}
    with pytest.raises(ValueError, match=r"array position of another spot.*library_key='sample'"):
        getattr(hggep.tl, call)(both, genes=5, **how)
