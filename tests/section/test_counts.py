"""Raw counts of a section, and of a table's rows: matched by name, and refused where they are none."""

import re
import warnings

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from helpers import GENES, make_adata
from hggep_sc.section import _counts, gene_name_hint, observed_counts, open_sections


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "int", "layer"])
def test_counts_by_name(kind) -> None:
    adata = make_adata()
    values = adata.X.toarray()
    if kind == "layer":
        adata.layers["raw"] = adata.X.copy()
        adata.X = adata.X.multiply(0.5).tocsr()
    else:
        convert = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray, "int": np.int64}
        adata.X = convert[kind](values)
    adata.obs["in_tissue"] = np.arange(30) % 3 > 0
    (section,) = open_sections(adata, layer="raw" if kind == "layer" else None)
    rows = np.arange(30) % 3 > 0
    counts = section.counts(["MUC1", "GNAS"])
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts.toarray(), values[rows][:, [4, 0]])
    library = section.library()
    assert library.dtype == np.float64
    np.testing.assert_array_equal(library, values[rows].sum(axis=1))
    assert section.has_counts


def test_library_is_read_in_pieces(monkeypatch) -> None:
    monkeypatch.setattr(_counts, "CHUNK", 20)  # 4 rows of 5 genes
    adata = make_adata()
    values = adata.X.toarray()
    adata.X = values
    (section,) = open_sections(adata)
    matrix = _counts.CountMatrix(adata, None, "the table")
    assert [len(chunk) for chunk in matrix.chunks(section.obs_rows)] == [4] * 7 + [2]
    np.testing.assert_array_equal(section.library(), values.sum(axis=1))
    adata.X[29, 4] = -1
    with pytest.raises(ValueError, match="negative"):
        section.library()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (-2.0, r"negative values \(-2\)"),
        (np.nan, "1 NaN"),
        (np.inf, "1 NaN or inf"),
        (1e38, r"values as large as 1e\+38"),
        (0.5, r"non-integer values \(0\.5\)"),
    ],
)
def test_values_that_are_no_counts(value, problem, dense) -> None:
    adata = make_adata()
    values = adata.X.toarray()
    values[7, 2] = value
    adata.X = values if dense else sparse.csr_matrix(values)
    adata.layers["raw"] = sparse.csr_matrix(np.abs(np.nan_to_num(values)).round())
    (section,) = open_sections(adata)
    message = f"X holds {problem}.*`layer=`.*'raw'"
    with pytest.raises(ValueError, match=message):
        section.counts(["CD74"])
    with pytest.raises(ValueError, match=message):
        section.library()
    assert section.counts(["GNAS", "FASN"]).shape == (30, 2)  # these genes are counts
    adata.layers["bad"] = adata.X
    with pytest.raises(ValueError, match=r"layers\['bad'\] holds"):
        open_sections(adata, layer="bad")[0].counts(["CD74"])


def test_missing_and_repeated_genes() -> None:
    (section,) = open_sections(make_adata())
    with pytest.raises(KeyError, match="2 of 3 genes are not in var_names: 'KRT5', 'KRT8'"):
        section.counts(["GNAS", "KRT5", "KRT8"])
    with pytest.raises(KeyError, match=r"no gene in common.*Ensembl ids .ENSG00000087460"):
        section.counts(["ENSG00000087460", "ENSG00000169710"])
    with pytest.raises(ValueError, match="asked for: gene names occur more than once: 'GNAS'"):
        section.counts(["GNAS", "GNAS"])
    adata = make_adata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata's own
        adata.var_names = ["GNAS", "GNAS", "CD74", "ACTB", "MUC1"]
        with pytest.raises(ValueError, match="var_names: gene names occur more than once: 'GNAS'"):
            open_sections(adata)[0].counts(["CD74"])


SYMBOLS = ["GNAS", "FASN", "ERBB2", "CD74"]
IDS = ["ENSG00000087460", "ENSG00000169710", "ENSG00000141736"]


@pytest.mark.parametrize(
    ("a", "b", "seen"),
    [
        (SYMBOLS, ["GRCh38_" + name for name in SYMBOLS] + ["mm10___Gnas"], ["a genome's prefix"]),
        (SYMBOLS, ["GRCh38______" + name for name in SYMBOLS], ["a genome's prefix"]),
        (IDS, [name + ".12" for name in IDS], ["the version of Ensembl ids"]),
        ([name + ".3" for name in IDS], ["GRCh38_" + name for name in IDS], ["prefix", "version"]),
        (SYMBOLS, [name.capitalize() for name in SYMBOLS], ["upper and lower case"]),
    ],
)
def test_how_names_differ_is_said_with_a_remedy_that_works(a, b, seen) -> None:
    hint = gene_name_hint(a, b)
    for words in ("a genome's prefix", "the version of Ensembl ids", "upper and lower case"):
        assert (words in hint) == any(part in words for part in seen)
    # as told: the remedies are code
    tables = [ad.AnnData(np.zeros((1, len(names)), np.float32), var=pd.DataFrame(index=names)) for names in (a, b)]
    for code in re.findall(r"`(adata\.var_names = .*?)`", hint):
        for adata in tables:
            exec(code, {"adata": adata})
    assert set(tables[0].var_names) <= set(tables[1].var_names)
    one, other = re.search(r"Names such as '(.*?)' and '(.*?)' differ", hint).groups()
    where = dict(zip(a, b, strict=False))
    assert where[one] == other  # one gene, as it is written on both sides


def test_ids_are_brought_to_symbols_and_symbols_to_ids() -> None:
    for names, wanted in ((IDS, SYMBOLS[:3]), (SYMBOLS[:3], IDS)):
        table = ad.AnnData(
            np.zeros((1, 3), np.float32),
            var=pd.DataFrame({"gene_symbols": SYMBOLS[:3], "gene_ids": IDS}, index=names),
        )
        hint = gene_name_hint(wanted, names)
        kind = "ids" if wanted is IDS else "symbols"
        (code,) = re.findall(rf"`(adata\.var_names = [^`]*)` for {kind}", hint)
        exec(code, {"adata": table})
        assert list(table.var_names) == list(wanted)


def test_names_that_differ_otherwise_get_no_hint() -> None:
    assert gene_name_hint(SYMBOLS, ["A", "B"]) == ""
    assert gene_name_hint(["AC012345.2", "MT-CO1"], ["AC012345.1", "MT-CO2"]) == ""  # dots that are no version


def test_counts_that_lie_in_raw_are_pointed_to() -> None:
    adata = make_adata()
    counts = adata.X.copy()
    adata.raw = adata
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match=r"raw counts seem to lie in adata\.raw: `adata = adata\.raw\.to_adata\(\)`"):
        open_sections(adata)[0].counts(GENES)
    (section,) = open_sections(adata.raw.to_adata())
    np.testing.assert_array_equal(section.counts(GENES).toarray(), counts.toarray())
    adata.raw = adata  # which are not raw either
    with pytest.raises(ValueError, match="non-integer") as refused:
        open_sections(adata)[0].counts(GENES)
    assert "adata.raw" not in str(refused.value)


@pytest.mark.parametrize(
    "values", [(1, 0), (True, False), ("1", "0"), ("True", "False"), ("TRUE", "FALSE"), (1.0, np.nan)]
)
@pytest.mark.parametrize("kind", [object, "category"])
def test_what_in_tissue_may_hold(values, kind) -> None:
    adata = make_adata()
    adata.obs["in_tissue"] = pd.Series([values[i % 3 == 0] for i in range(30)], index=adata.obs_names).astype(kind)
    np.testing.assert_array_equal(open_sections(adata)[0].obs_rows, [i for i in range(30) if i % 3])
    adata.obs["in_tissue"] = "yes"
    with pytest.raises(ValueError, match="found 'yes'"):
        open_sections(adata)


def test_lazily_read_objects_are_refused_and_backed_and_dask_ones_read(tmp_path) -> None:
    adata = make_adata()
    adata.write_zarr(tmp_path / "a.zarr")
    with pytest.raises(TypeError, match=r"read lazily.*adata\.to_memory\(\)"):
        open_sections(ad.experimental.read_lazy(tmp_path / "a.zarr"))
    (section,) = open_sections(ad.experimental.read_lazy(tmp_path / "a.zarr").to_memory())
    np.testing.assert_array_equal(section.counts(GENES).toarray(), adata.X.toarray())
    lazy = adata.copy()
    lazy.X = dask.array.from_array(adata.X.toarray(), chunks=(7, 2))
    np.testing.assert_array_equal(open_sections(lazy)[0].counts(GENES).toarray(), adata.X.toarray())
    np.testing.assert_allclose(open_sections(lazy)[0].library(), adata.X.sum(axis=1).A1)


def test_gene_name_hint() -> None:
    ids = ["ENSMUSG00000025903.14", "ENSMUSG00000033813"]
    for pair in ((GENES, ids), (ids, GENES), (pd.Index(GENES), np.array(ids))):
        hint = gene_name_hint(*pair)
        assert "ENSMUSG00000025903.14" in hint
        assert "GNAS" in hint
    assert gene_name_hint(GENES, ["ENSA", "ENG"]) == ""  # gene symbols that begin alike
    assert gene_name_hint(ids, ids) == ""
    assert gene_name_hint([], ids) == ""


def test_without_counts(tmp_path) -> None:
    adata = make_adata()
    absent = ad.AnnData(X=None, obs=adata.obs, var=adata.var, uns=adata.uns, obsm={"spatial": adata.obsm["spatial"]})
    absent.write_h5ad(tmp_path / "absent.h5ad")
    backed = ad.read_h5ad(tmp_path / "absent.h5ad", backed="r")
    for data in (absent, absent[:5], backed, backed[:5]):
        (section,) = open_sections(data)
        assert not section.has_counts
        with pytest.raises(KeyError, match="no counts: X is empty"):
            section.counts(["GNAS"])
    backed.file.close()
    for zeros in (np.zeros(adata.shape), sparse.csr_matrix(adata.shape)):
        adata.X = zeros
        assert not open_sections(adata)[0].has_counts
    adata.layers["raw"] = np.ones(adata.shape)
    assert open_sections(adata, layer="raw")[0].has_counts
    with pytest.raises(KeyError, match=r"no layer 'counts'; layers: 'raw'"):
        open_sections(adata, layer="counts")


@pytest.mark.parametrize("compressed", ["csr", "csc", "dense"])
def test_views_and_backed_objects_are_read(tmp_path, compressed) -> None:
    adata = make_adata()
    adata.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda x: x.toarray()}[compressed](adata.X)
    values = np.asarray(adata.to_df())
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    some = np.array([17, 3, 4, 28])
    for data, rows in (
        (backed, np.arange(30)),
        (backed[some], some),
        (adata[some], some),
        (adata[some, [4, 3, 2, 1, 0]], some),
    ):
        (section,) = open_sections(data)
        np.testing.assert_array_equal(section.counts(["ACTB", "GNAS"]).toarray(), values[rows][:, [3, 0]])
        np.testing.assert_array_equal(section.library(), values[rows].sum(axis=1))
        assert section.has_counts
        np.testing.assert_array_equal(section.xy, adata.obsm["spatial"][rows])
        with section.open_image() as image:
            under = image.read_patches(section.xy, field=1, size=1)[:, :2, 0, 0]
        np.testing.assert_array_equal(under, section.xy)
    assert adata[some].is_view
    backed.file.close()


@pytest.mark.parametrize("layer", [None, "raw"])
def test_observed_counts_are_those_of_the_rows(layer) -> None:
    adata = make_adata()
    values = adata.X.toarray()
    if layer is not None:
        adata.layers[layer] = adata.X
        adata.X = adata.X * 0.5
    rows = np.array([28, 3, 4])
    counts, library = observed_counts(adata, rows, ["MUC1", "GNAS"], layer)
    assert isinstance(counts, sparse.csr_matrix)
    np.testing.assert_array_equal(counts.toarray(), values[rows][:, [4, 0]])
    np.testing.assert_array_equal(library, values[rows].sum(axis=1))
    assert library.dtype == np.float64


def test_observed_counts_that_are_none() -> None:
    adata = make_adata()
    adata.layers["raw"] = adata.X.copy()
    rows = np.arange(5)
    with pytest.raises(KeyError, match=r"the table has no counts: there is no layer 'counts'.*`observed_layer=`"):
        observed_counts(adata, rows, GENES, "counts")
    with pytest.raises(KeyError, match="1 of 2 genes are not in var_names: 'KRT5'"):
        observed_counts(adata, rows, ["GNAS", "KRT5"], None)
    with pytest.raises(ValueError, match=r"no counts: X holds none at the 0 spots.*'raw'"):
        observed_counts(adata, rows[:0], GENES, None)
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match=r"the table: X holds non-integer.*`observed_layer=`.*'raw'"):
        observed_counts(adata, rows, GENES, None)
    # all genes count towards the library, those not asked for too
    adata.X = np.where(np.arange(5) == 4, -1.0, 1.0) * np.ones((30, 1))
    with pytest.raises(ValueError, match="negative"):
        observed_counts(adata, rows, ["GNAS"], None)
    adata.X = np.zeros(adata.shape)
    with pytest.raises(ValueError, match=r"no counts: X holds none at the 5 spots"):
        observed_counts(adata, rows, GENES, None)
    adata.X = None
    with pytest.raises(KeyError, match="no counts: X is empty"):
        observed_counts(adata, rows, GENES, None)
