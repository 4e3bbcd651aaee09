"""Sections read from SpatialData: the same as from the equal AnnData, and what is ambiguous is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hggep_sc.section import copy_of, open_sections, require_writable, table_of, write_prediction

pytest.importorskip("spatialdata")
import geopandas
import shapely
import spatialdata
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

HEIGHT, WIDTH = 200, 240
GENES = ["GNAS", "FASN", "CD74", "ACTB", "MUC1"]
RADIUS = 6.0

# the coordinate system: mirrored and rotated by 90 degrees, 2.5 units per px, moved
TO_SYSTEM = Affine(
    np.array([[0, -2.5, 1000], [2.5, 0, -400], [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y")
)


def image_of_coordinates() -> np.ndarray:
    """(channel, y, x) image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns, rows, np.full_like(rows, 7)]).astype(np.uint8)


def grid() -> np.ndarray:
    x, y = np.meshgrid(30 + 30 * np.arange(6), 30 + 30 * np.arange(5))
    return np.column_stack([x.ravel(), y.ravel()]) + np.random.default_rng(5).uniform(-5, 5, size=(30, 2))


def make_image(array=None, *, channels=None, levels=True, **transformations):
    return Image2DModel.parse(
        image_of_coordinates() if array is None else array,
        dims=("c", "y", "x"),
        c_coords=channels,
        scale_factors=[2, 2] if levels else None,
        transformations=transformations or {"global": TO_SYSTEM},
    )


def make_shapes(xy=None, *, index=None, squares=False, **transformations):
    """Spots of the image, in units of 4 px with the origin moved, mapped into the coordinate system."""
    xy = grid() if xy is None else xy
    own = (xy - 50) / 4
    transformations = transformations or {
        "global": Sequence([Scale([4, 4], axes=("x", "y")), Translation([50, 50], axes=("x", "y")), TO_SYSTEM])
    }
    index = np.arange(100, 100 + len(xy)) if index is None else index
    if squares:
        geometry = shapely.box(*(own - RADIUS / 4).T, *(own + RADIUS / 4).T)
        return ShapesModel.parse(
            geopandas.GeoDataFrame(geometry=geometry, index=index), transformations=transformations
        )
    return ShapesModel.parse(own, geometry=0, radius=RADIUS / 4, index=pd.Index(index), transformations=transformations)


def make_table(instances=None, *, region="spots", order=None) -> ad.AnnData:
    instances = np.arange(100, 130) if instances is None else instances
    counts = np.random.default_rng(0).poisson(3, size=(len(instances), len(GENES))).astype(np.float32)
    table = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    table.obs_names = [f"spot{i}" for i in range(len(instances))]
    table.obs["region"] = pd.Categorical([region] * len(instances))
    table.obs["instance_id"] = instances
    if order is not None:
        table = table[order].copy()
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


def make_sdata(*, images=None, shapes=None, tables=None, labels=None) -> spatialdata.SpatialData:
    order = np.random.default_rng(1).permutation(30)
    return spatialdata.SpatialData(
        images={"he": make_image()} if images is None else images,
        shapes={"spots": make_shapes()} if shapes is None else shapes,
        tables={"table": make_table(order=order)} if tables is None else tables,
        labels=labels or {},
    )


def equal_adata() -> ad.AnnData:
    adata = make_table().copy()
    del adata.uns["spatialdata_attrs"]
    adata.obsm["spatial"] = grid()
    adata.uns["spatial"] = {
        "A": {
            "images": {"full": np.moveaxis(image_of_coordinates(), 0, -1)},
            "scalefactors": {"tissue_full_scalef": 1.0, "spot_diameter_fullres": 2 * RADIUS},
        }
    }
    return adata


def patches_of(section, **how) -> np.ndarray:
    with section.open_image() as image:
        return image.read_patches(section.xy, **how)


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("levels", [False, True])
def test_the_same_section_as_anndata(squares, levels) -> None:
    adata = equal_adata()
    sdata = make_sdata(images={"he": make_image(levels=levels)}, shapes={"spots": make_shapes(squares=squares)})
    table = sdata.tables["table"]
    (one,), (other,) = open_sections(adata), open_sections(sdata)
    assert other.name == "spots"
    assert other.table is table
    assert other.spot_shape == ("square" if squares else "circle")
    assert other.spot_diameter == pytest.approx(one.spot_diameter, rel=1e-12)
    # the table is shuffled against the shapes: rows are compared by the name of the spot
    assert list(table.obs_names) != list(adata.obs_names)
    rows = adata.obs_names.get_indexer(table.obs_names[other.obs_rows])
    np.testing.assert_allclose(other.xy, one.xy[rows], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(other.counts(GENES).toarray(), one.counts(GENES).toarray()[rows])
    for how in ({"field": 1, "size": 1}, {"field": 16, "size": 16}):
        np.testing.assert_array_equal(patches_of(other, **how), patches_of(one, **how)[rows])
    under = patches_of(other, field=1, size=1)[:, :2, 0, 0]
    np.testing.assert_array_equal(under, np.floor(other.xy))
    # a coarser reading takes the pyramid's second level, an average of the first
    coarse = patches_of(other, field=32, size=16).astype(int) - patches_of(one, field=32, size=16)[rows]
    assert np.abs(coarse).max() <= 2


def test_pixel_convention_is_that_of_spatialdata() -> None:
    """The library's own rasterisation and centroids agree with pixel i covering [i, i + 1)."""
    image = make_image(levels=True, **{"global": Identity()})
    np.testing.assert_array_equal(image["scale0"]["image"].coords["x"].values[:3], [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(image["scale1"]["image"].coords["x"].values[:2], [1.0, 3.0])
    transformation = spatialdata.transformations.get_transformation(image)
    assert transformation == spatialdata.transformations.get_transformation(image["scale0"]["image"])
    cut = spatialdata.bounding_box_query(
        image["scale0"]["image"],
        axes=("x", "y"),
        min_coordinate=[10, 20],
        max_coordinate=[12, 22],
        target_coordinate_system="global",
    )
    np.testing.assert_array_equal(cut.data.compute()[0], [[10, 11], [10, 11]])


def test_centres_agree_with_spatialdata() -> None:
    sdata = make_sdata(shapes={"spots": make_shapes(squares=True)})
    (section,) = open_sections(sdata)
    instances = sdata.tables["table"].obs["instance_id"]
    centroids = spatialdata.get_centroids(sdata.shapes["spots"], "global").compute().loc[instances, ["x", "y"]]
    matrix = TO_SYSTEM.to_affine_matrix(("x", "y"), ("x", "y"))
    back = np.c_[section.xy, np.ones(30)] @ matrix.T
    np.testing.assert_allclose(back[:, :2], centroids.to_numpy(), rtol=0, atol=1e-9)


def test_in_tissue_and_text_instances() -> None:
    names = np.array([f"bc{i}" for i in range(30)])
    order = np.random.default_rng(1).permutation(30)
    table = make_table(names, order=order)
    table.obs["in_tissue"] = (np.arange(30) > 9).astype(int)
    sdata = make_sdata(shapes={"spots": make_shapes(index=names)}, tables={"table": table})
    (section,) = open_sections(sdata)
    np.testing.assert_array_equal(section.obs_rows, np.arange(10, 30))
    np.testing.assert_allclose(section.xy, grid()[order][10:], rtol=0, atol=1e-9)


def test_several_regions_with_their_own_images() -> None:
    shift = Translation([1000, 0], axes=("x", "y"))
    shapes = {
        "spots": make_shapes(**{"one": Identity()}),
        "more": make_shapes(grid()[:12] + 3, **{"two": shift}),
    }
    images = {
        "left": make_image(**{"one": Affine([[0.25, 0, -12.5], [0, 0.25, -12.5], [0, 0, 1]], ("x", "y"), ("x", "y"))})
    }
    images["right"] = make_image(
        **{"two": Affine([[0.25, 0, 987.5], [0, 0.25, -12.5], [0, 0, 1]], ("x", "y"), ("x", "y"))}
    )
    table = ad.concat([make_table(), make_table(np.arange(100, 112), region="more")], index_unique="-")
    table = table[np.random.default_rng(2).permutation(42)].copy()
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region=["spots", "more"], region_key="region", instance_key="instance_id")
    sdata = make_sdata(images=images, shapes=shapes, tables={"table": table})
    first, second = open_sections(sdata)
    assert [first.name, second.name] == ["spots", "more"]
    assert [first.image_name, second.image_name] == ["images['left']", "images['right']"]
    instances = table.obs["instance_id"].to_numpy() - 100
    np.testing.assert_allclose(first.xy, grid()[instances[first.obs_rows]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(second.xy, grid()[instances[second.obs_rows]] + 3, rtol=0, atol=1e-9)
    (only,) = open_sections(sdata, shapes_key="more")
    np.testing.assert_array_equal(only.obs_rows, second.obs_rows)
    with pytest.raises(KeyError, match="does not annotate 'bins'; it annotates 'spots', 'more'"):
        open_sections(sdata, shapes_key="bins")
    assert [section.name for section in open_sections({"x": sdata})] == ["x/spots", "x/more"]


def test_finest_resolution_of_one_image(warned) -> None:
    """As spatialdata-io writes Visium: each resolution in a coordinate system of its own."""
    half, tenth = Scale([0.5, 0.5], axes=("x", "y")), Scale([0.1, 0.1], axes=("x", "y"))
    array = image_of_coordinates()
    shapes = ShapesModel.parse(
        grid(),
        geometry=0,
        radius=RADIUS,
        index=pd.Index(np.arange(100, 130)),
        transformations={"global": Identity(), "downscaled_hires": half, "downscaled_lowres": tenth},
    )
    images = {
        "S1_lowres_image": make_image(array[:, ::10, ::10], levels=False, downscaled_lowres=Identity()),
        "S1_hires_image": make_image(array[:, ::2, ::2], levels=False, downscaled_hires=Identity()),
    }
    (section,) = open_sections(make_sdata(images=images, shapes={"spots": shapes}, tables={"table": make_table()}))
    assert section.image_name == "images['S1_hires_image']"
    assert "the image is images['S1_hires_image'], a reduced copy" in warned.text
    np.testing.assert_allclose(section.xy, grid() / 2)
    images["S1_full_image"] = make_image(array)
    images["S1_full_image"] = make_image(array, **{"global": Identity()})
    sdata = make_sdata(images=images, shapes={"spots": shapes}, tables={"table": make_table()})
    (section,) = open_sections(sdata)
    assert section.image_name == "images['S1_full_image']"
    np.testing.assert_allclose(section.xy, grid())
    (section,) = open_sections(sdata, image_key="S1_lowres_image")
    np.testing.assert_allclose(section.xy, grid() / 10)
    (section,) = open_sections(sdata, coordinate_system="downscaled_hires")
    assert section.image_name == "images['S1_hires_image']"
    # full-resolution um per px, kept by whoever made the object
    sdata.tables["table"].uns["spatial"] = {"spots": {"scalefactors": {"microns_per_pixel": 0.5}}}
    assert open_sections(sdata)[0].mpp == pytest.approx(0.5)
    assert open_sections(sdata, image_key="S1_hires_image")[0].mpp == pytest.approx(1.0)


def test_ambiguous_or_absent_images() -> None:
    several = {"he": make_image(), "dapi": make_image()}
    with pytest.raises(ValueError, match=r"several images could be its own: '.*', '.*'; choose by `image_key=`"):
        open_sections(make_sdata(images=several))
    assert open_sections(make_sdata(images=several), image_key="he")[0].image_name == "images['he']"
    assert open_sections(make_sdata(images=several), image_key={"spots": "dapi"})[0].image_name == "images['dapi']"
    with pytest.raises(KeyError, match="no image 'cd8'; images: "):
        open_sections(make_sdata(images=several), image_key="cd8")
    with pytest.raises(ValueError, match="no image for section 'spots': the SpatialData holds none"):
        open_sections(make_sdata(images={}))
    apart = make_sdata(images={"he": make_image(elsewhere=Identity())})
    with pytest.raises(ValueError, match=r"none shares a coordinate system.*'global'.*'elsewhere'"):
        open_sections(apart)
    with pytest.raises(ValueError, match=r"none shares.*coordinate_system='aligned'"):
        open_sections(make_sdata(), coordinate_system="aligned")


def test_coordinate_systems() -> None:
    double = Scale([2, 2], axes=("x", "y"))
    places = {"a": Identity(), "b": double}
    shapes = ShapesModel.parse(
        grid(), geometry=0, radius=1, index=pd.Index(np.arange(100, 130)), transformations=places
    )

    def opened(transformations, **how):
        sdata = make_sdata(images={"he": make_image(**transformations)}, shapes={"spots": shapes})
        xy = open_sections(sdata, **how)[0].xy
        return xy / grid()[sdata.tables["table"].obs["instance_id"] - 100]

    np.testing.assert_allclose(opened(places), 1)  # several that agree
    with pytest.raises(ValueError, match="'a', 'b', where they lie differently; choose one by `coordinate_system=`"):
        opened({"a": Identity(), "b": Identity()})
    np.testing.assert_allclose(opened({"a": double, "b": Identity()}, coordinate_system="a"), 0.5)
    np.testing.assert_allclose(opened({"b": double, "c": Identity()}), 1)
    flat = Affine([[1, 0, 0], [1, 0, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))
    with pytest.raises(ValueError, match="to 'a' cannot be inverted"):
        opened({"a": flat})


def test_physical_scale(warned) -> None:
    (section,) = open_sections(make_sdata())
    assert section.mpp is None
    assert "taken as equal" in warned.text
    assert open_sections(make_sdata(), mpp=0.3)[0].mpp == 0.3
    assert open_sections(make_sdata(), mpp={"spots": 0.3})[0].mpp == 0.3
    for system in ("um", "Microns", "micrometer"):
        image = make_image(**{"global": TO_SYSTEM, system: Scale([0.4, 0.4], axes=("x", "y"))})
        assert open_sections(make_sdata(images={"he": image}))[0].mpp == pytest.approx(0.4)
    sdata = make_sdata(shapes={"spots": make_shapes(np.rint(grid() / 30) * 30)})
    sdata.tables["table"].uns["spatial"] = {"he": {"metadata": {"technology": "Visium"}}}
    assert open_sections(sdata)[0].mpp == pytest.approx(100 / 30)


def test_channels() -> None:
    array = image_of_coordinates()
    (plain,) = open_sections(make_sdata())
    (swapped,) = open_sections(make_sdata(images={"he": make_image(array[[1, 2, 0]], channels=["Green", "blue", "r"])}))
    np.testing.assert_array_equal(patches_of(swapped, field=5, size=5), patches_of(plain, field=5, size=5))
    (gray,) = open_sections(make_sdata(images={"he": make_image(array[:1])}))
    np.testing.assert_array_equal(patches_of(gray, field=1, size=1)[:, 1, 0, 0], np.floor(gray.xy[:, 0]))
    five = make_image(np.concatenate([array, array[:2]]), channels=["DAPI", "CD3", "CD8", "CD20", "KRT"])
    with pytest.raises(ValueError, match=r"image 'he' has 5 channels .'DAPI', 'CD3'.*`image_key=`"):
        open_sections(make_sdata(images={"he": five}))


def test_tables() -> None:
    two = make_sdata(tables={"bins8": make_table(), "bins16": make_table()})
    with pytest.raises(ValueError, match=r"several tables: 'bins\d+', 'bins\d+'; choose one by `table_key=`"):
        open_sections(two)
    (section,) = open_sections(two, table_key="bins8")
    assert section.table is two.tables["bins8"] is table_of(two, "bins8")
    with pytest.raises(KeyError, match="no table 'table'"):
        open_sections(two, table_key="table")
    with pytest.raises(ValueError, match="has no table"):
        open_sections(make_sdata(tables={}))
    with pytest.raises(ValueError, match="`library_key` is for AnnData"):
        open_sections(two, library_key="slide")


def test_tables_that_annotate_nothing_of_use() -> None:
    loose = make_table()
    del loose.uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="does not say which shapes it annotates"):
        open_sections(make_sdata(tables={"table": loose}))
    with pytest.warns(UserWarning, match="not present"):
        sdata = make_sdata(tables={"table": make_table(region="bins")})
    with pytest.raises(ValueError, match="annotates 'bins', but the shapes are 'spots'"):
        open_sections(sdata)


def test_instances_that_are_not_among_the_shapes() -> None:
    sdata = make_sdata(tables={"table": make_table(np.arange(98, 128))})
    with pytest.raises(ValueError, match=r"2 of 30 instances in obs\['instance_id'\] .'98', '99'"):
        open_sections(sdata)
    twice = make_shapes(index=np.r_[100, 100, 102:130])
    with pytest.raises(ValueError, match="an instance more than once"):
        open_sections(make_sdata(shapes={"spots": twice}))


def test_bad_coordinates(warned) -> None:
    # the spots' transformation was forgotten
    apart = make_shapes(**{"global": Identity()})
    with pytest.raises(ValueError, match=r"spots lie outside the image.*Are the transformations"):
        open_sections(make_sdata(shapes={"spots": apart}))
    xy = grid()
    xy[2] = xy[7]
    with pytest.raises(ValueError, match="1 of 30 spots have the coordinates of another"):
        open_sections(make_sdata(shapes={"spots": make_shapes(xy)}))
    xy = grid()
    xy[2, 0] = WIDTH + 5
    open_sections(make_sdata(shapes={"spots": make_shapes(xy)}))
    assert "1 of 30 spots lie outside" in warned.text


def test_prediction_is_written_and_survives_zarr(tmp_path) -> None:
    sdata = make_sdata()
    sections = open_sections(sdata)
    rng = np.random.default_rng(0)
    prediction = (rng.normal(size=(30, 2)).astype(np.float32), rng.normal(size=(30, 4)))
    write_prediction(
        sdata, sections, [prediction], genes=["MUC1", "KRT5"], key="hggep", params={"genes": ["MUC1", "KRT5"]}
    )
    sdata.write(tmp_path / "a.zarr")
    back = spatialdata.read_zarr(tmp_path / "a.zarr")
    table = table_of(back)
    np.testing.assert_array_equal(table.layers["hggep"][:, 4], prediction[0][:, 0])
    assert np.isnan(table.layers["hggep"][:, :4]).all()
    assert table.var["hggep_predicted"].tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(table.obsm["X_hggep"], prediction[1].astype(np.float32))
    assert list(table.uns["hggep"]["genes"]) == ["MUC1", "KRT5"]
    # and the object read back from disk is the same section
    (again,) = open_sections(back)
    np.testing.assert_allclose(again.xy, sections[0].xy, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(patches_of(again, field=9, size=9), patches_of(sections[0], field=9, size=9))


def test_a_copy_shares_all_but_the_tables() -> None:
    labels = Labels2DModel.parse(np.zeros((8, 8), dtype=np.int64), dims=("y", "x"))
    sdata = make_sdata(labels={"cells": labels}, tables={"bins8": make_table(), "bins16": make_table()})
    sdata.attrs["kept"] = {"by": "us"}
    twin = copy_of(sdata)
    assert {(kind, name) for kind, name, _ in twin.gen_elements()} == {
        (kind, name) for kind, name, _ in sdata.gen_elements()
    }
    for name in ("he", "spots", "cells"):
        assert twin[name] is sdata[name]
    assert twin.attrs == {"kept": {"by": "us"}}
    twin.attrs["kept"]["by"] = "them"
    assert sdata.attrs["kept"]["by"] == "us"

    require_writable(twin, ["MUC1"], key="hggep", table_key="bins8")
    with pytest.raises(ValueError, match="several tables"):
        require_writable(twin, ["MUC1"], key="hggep")
    prediction = (np.zeros((30, 1), np.float32), np.zeros((30, 4)))
    # sections of the original, written to the copy
    sections = open_sections(sdata, table_key="bins8")
    write_prediction(twin, sections, [prediction], genes=["MUC1"], key="hggep", params={}, table_key="bins8")
    assert "hggep" in twin["bins8"].layers
    twin["bins16"].X[0, 0] = 99
    for table in sdata.tables.values():
        assert not table.layers
        assert "hggep" not in table.uns
        assert "hggep_predicted" not in table.var
        assert table.X[0, 0] != 99
