"""um per px: from every source, compared with the others, within what a microscope gives."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData

import hggep_sc as hggep
from helpers import make_adata
from hggep_sc.image import SectionImage
from hggep_sc.section import open_sections

HEX = np.array([0.5, np.sqrt(0.75)])


@pytest.fixture
def skipped():
    """Leave out checks by name for one test."""
    kept = hggep.settings.skip_checks

    def skip(*names):
        hggep.settings.skip_checks = frozenset(names)

    yield skip
    hggep.settings.skip_checks = kept


def visium(pitch: float = 20.0, *, side: int = 10, barcodes: bool = False, **entry):
    """A hexagonal array on an image of 200 x 240 px, and nothing that names its technology."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(side), np.arange(side)))
    places = np.column_stack([2 * x + y % 2, y])
    adata = AnnData(np.ones((len(places), 3), np.float32), uns=make_adata().uns)
    letters = np.array(list("ACGT"))[np.random.default_rng(0).integers(0, 4, (len(places), 16))]
    adata.obs_names = ["".join(word) + "-1" if barcodes else f"spot{i}" for i, word in enumerate(letters)]
    adata.obs["array_col"], adata.obs["array_row"] = places.T
    adata.obsm["spatial"] = places * HEX * pitch + 5
    library = adata.uns["spatial"]["A"]
    library["metadata"] = entry.get("metadata", {})
    library["scalefactors"] = {"tissue_full_scalef": 1.0, **entry.get("scalefactors", {})}
    return adata


def hd(bin_um: int, side: float, *, barcodes: bool = True, **entry):
    """Bins on an image of 200 x 240 px."""
    adata = visium(side, **entry)
    rows, columns = np.divmod(np.arange(adata.n_obs), 10)
    adata.obs["array_col"], adata.obs["array_row"] = columns, rows
    adata.obsm["spatial"] = np.column_stack([columns, rows]) * side + 5
    if barcodes:
        adata.obs_names = [f"s_{bin_um:03}um_{r + 300:05}_{c:05}-1" for r, c in zip(rows, columns, strict=True)]
    return adata


def only(data, **keywords):
    (section,) = open_sections(data, **keywords)
    return section


def write_tiff(path, mpp):
    pixels = make_adata().uns["spatial"]["A"]["images"]["full"]
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER")
    return {"source_image_path": str(path)}


# --- the spots


@pytest.mark.parametrize("share", [1, 0.5, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("positions", [True, False])
def test_few_spots_are_as_far_apart_as_all(share, positions) -> None:
    adata = visium(5.0, side=30, metadata={"chemistry_description": "Spatial 3' v1"})
    rows = np.sort(np.random.default_rng(3).permutation(adata.n_obs)[: round(share * adata.n_obs)])
    some = adata[rows].copy()
    if not positions:
        del some.obs["array_row"]
    section = only(some)
    assert section.mpp == pytest.approx(20, rel=1e-3)
    assert section.mpp_source == "spots"
    assert section.spacing_um == pytest.approx(100, rel=1e-3)


def test_too_few_spots_say_nothing() -> None:
    named = {"metadata": {"technology": "Visium"}}
    few = visium(**named)[[0, 15, 37, 60]].copy()
    assert only(few).mpp == pytest.approx(5, rel=1e-6)
    del few.obs["array_row"]
    assert only(few).mpp is None
    assert only(visium(**named)[:1].copy()).mpp is None


def test_visium_is_known_by_its_signs() -> None:
    """Fiducials or barcodes on a hexagonal array, without a word of the chemistry; neither alone."""
    fiducials = {"scalefactors": {"fiducial_diameter_fullres": 30.0}}
    for adata in (visium(**fiducials), visium(barcodes=True)):
        for rows in (slice(None), [0, 15, 37, 60]):
            assert only(adata[rows].copy()).mpp == pytest.approx(5, rel=1e-6)
    assert only(visium()).mpp is None
    square = hd(8, 15.0, barcodes=False, **fiducials)
    assert only(square).mpp is None
    unplaced = visium(**fiducials)
    del unplaced.obs["array_col"]
    assert only(unplaced).mpp is None


def test_a_hires_copy_without_its_chemistry() -> None:
    adata = visium(80.0, scalefactors={"fiducial_diameter_fullres": 30.0})
    library = adata.uns["spatial"]["A"]
    library["images"] = {"hires": library["images"]["full"]}
    del library["scalefactors"]["tissue_full_scalef"]
    library["scalefactors"]["tissue_hires_scalef"] = 0.25
    section = only(adata)
    assert section.mpp == pytest.approx(100 / 80 / 0.25, rel=1e-6)
    assert (section.reduction, section.mpp_fullres) == (4, pytest.approx(100 / 80))


@pytest.mark.parametrize("bin_um", [2, 8, 16])
@pytest.mark.parametrize("kept", [slice(None), slice(0, 30, 7), slice(3, 5)])
def test_visium_hd_by_its_barcodes(bin_um, kept) -> None:
    adata = hd(bin_um, 10.0)[kept].copy()
    for positions in (True, False):
        section = only(adata)
        assert section.mpp == pytest.approx(bin_um / 10, rel=1e-6)
        assert section.spot_shape == "square"
        if positions:
            del adata.obs["array_col"], adata.obs["array_row"]


def test_visium_hd_by_scale_factors_and_names() -> None:
    chemistry = {"chemistry_description": "Visium HD v1"}
    by_factor = hd(8, 10.0, barcodes=False, scalefactors={"bin_size_um": 8}, metadata=chemistry)
    assert only(by_factor).mpp == pytest.approx(0.8)
    by_name = hd(8, 10.0, barcodes=False)
    by_name.uns["spatial"] = {"P1_square_016um": by_name.uns["spatial"].pop("A")}
    assert only(by_name).mpp == pytest.approx(1.6)
    assert only(hd(8, 10.0, barcodes=False, metadata=chemistry)).mpp is None  # of what size?
    factors = {"bin_size_um": 16, "spot_diameter_fullres": 40.0}
    one = hd(16, 40.0, scalefactors=factors)[:1].copy()  # a bin is as wide as bins are apart
    assert only(one).mpp == pytest.approx(0.4)


def test_squares_with_gaps_between_them_are_no_bins(warned) -> None:
    """`bin_size_um` of spots that are only drawn as squares."""
    factors = {"bin_size_um": 55, "spot_diameter_fullres": 12.0, "microns_per_pixel": 1.2}
    section = only(hd(8, 20.0, barcodes=False, scalefactors=factors))
    assert (section.mpp, section.spacing_um, section.spot_shape) == (1.2, pytest.approx(24), "square")
    assert not warned.messages


def test_cells_are_no_bins(warned) -> None:
    """Cells put together from bins keep the bins' scale factors; they are on no grid."""
    adata = hd(2, 2.5, barcodes=False, scalefactors={"bin_size_um": 2, "microns_per_pixel": 0.8})
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 200, (adata.n_obs, 2))
    adata.obs["array_col"], adata.obs["array_row"] = adata.obsm["spatial"].T / 2.5
    assert only(adata).mpp == 0.8
    assert not warned.messages


def test_a_hexagonal_array_is_no_legacy_array() -> None:
    assert only(visium(metadata={"technology": "ST"})).mpp is None
    assert only(hd(1, 15.0, barcodes=False, metadata={"technology": "ST"})).mpp == pytest.approx(200 / 15)


# --- sources that contradict each other


@pytest.mark.parametrize(
    ("factor", "outcome"), [(1.0, "silent"), (1.08, "silent"), (0.92, "silent"), (1.3, "said"), (0.6, "said"),
                            (2.2, "refused"), (0.2125, "refused")],
)  # fmt: skip
@pytest.mark.parametrize("source", ["scalefactors", "file"])
def test_a_source_against_the_spots(factor, outcome, source, tmp_path, warned, skipped) -> None:
    metadata, factors = {"technology": "Visium"}, {}
    if source == "file":
        metadata |= write_tiff(tmp_path / "a.tif", 5 * factor)
    else:
        factors = {"microns_per_pixel": 5 * factor}
    adata = visium(metadata=metadata, scalefactors=factors)
    if outcome == "refused":
        with pytest.raises(ValueError, match=r"section 'A'.*which lie 100 um apart, say 5.*`mpp=`.*scales_agree"):
            open_sections(adata)
        assert only(adata, mpp=5).mpp == 5  # the user's word decides
        assert f"`mpp=` says 5 um per px, but {'the image file' if source == 'file' else 'scalefactors'}" in warned.text
        warned.clear()
        skipped("scales_agree")
        outcome = "silent"
    section = only(adata)
    assert (section.mpp, section.mpp_source) == (pytest.approx(5 * factor, rel=1e-3), source)
    assert ("100 um apart" in warned.text) is (outcome == "said")


@pytest.mark.parametrize(("mpp", "said"), [(5, False), (5.4, False), (6, True), (14, True), (0.5, True)])
def test_the_users_word_is_taken_and_its_contradiction_said(mpp, said, warned) -> None:
    section = only(visium(metadata={"technology": "Visium"}), mpp=mpp)
    assert (section.mpp, section.mpp_source) == (mpp, "mpp=")
    assert ("`mpp=` says" in warned.text) is said


def test_scale_factors_against_the_file(tmp_path, warned) -> None:
    adata = visium(metadata=write_tiff(tmp_path / "a.tif", 0.25), scalefactors={"microns_per_pixel": 0.26})
    assert only(adata).mpp == 0.26
    assert not warned.messages
    adata.uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"] = 0.55
    with pytest.raises(ValueError, match=r"scalefactors.*says 0\.55 .*the image file .*a\.tif says 0\.25"):
        open_sections(adata)


def test_px_that_are_no_squares(tmp_path) -> None:
    path = tmp_path / "a.tif"
    pixels = make_adata().uns["spatial"]["A"]["images"]["full"]
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(20000, 10000), resolutionunit="CENTIMETER")
    adata = visium(metadata={"source_image_path": str(path)})
    with pytest.raises(ValueError, match=r"px are 2 times as high as wide.*resample"):
        open_sections(adata)
    with pytest.raises(ValueError, match="2 times as high"):
        hggep.pp.tile(path)
    assert only(adata, mpp=0.5).mpp == 0.5


# --- what no microscope gives


@pytest.mark.parametrize(
    ("mpp", "said"),
    [
        (0.00025, r"millimetres, 0\.25 um"),
        (2.5e-7, r"metres, 0\.25 um"),
        (250, r"nanometres, 0\.25 um"),
        (0.02, "Check unit and decimal point"),
        (352.78, "72 dpi"),
        (25, "Check unit"),
    ],
)
def test_implausible_scales_are_refused_from_every_source(mpp, said, tmp_path) -> None:
    said = rf"{mpp:.4g} um per px.*0\.05 to 20.*{said}.*scale_plausible"
    with pytest.raises(ValueError, match=said):
        open_sections(visium(), mpp=mpp)
    with pytest.raises(ValueError, match=said):
        open_sections(visium(scalefactors={"microns_per_pixel": mpp}))
    path = tmp_path / "a.ome.tif"
    pixels = make_adata().uns["spatial"]["A"]["images"]["full"]
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": mpp})
    with pytest.raises(ValueError, match=said):
        open_sections(visium(metadata={"source_image_path": str(path)}))
    for how in ({"data": path}, {"data": pixels, "mpp": mpp}):
        with pytest.raises(ValueError, match=said):
            hggep.pp.tile(**how)
        with pytest.raises(ValueError, match=said):
            hggep.pp.tissue_mask(**how)


@pytest.mark.parametrize("mpp", [0.05, 0.12, 4.38, 20])
def test_scales_of_microscopes_and_reduced_copies_are_not(mpp, warned) -> None:
    assert only(visium(scalefactors={"microns_per_pixel": mpp})).mpp == mpp
    small = make_adata()
    library = small.uns["spatial"]["A"]
    library["images"] = {"lowres": library["images"]["full"]}
    library["scalefactors"] = {"tissue_lowres_scalef": 0.02, "microns_per_pixel": 0.5}
    library["metadata"] = {}
    small.obsm["spatial"] = small.obsm["spatial"] / 0.02
    assert only(small).mpp == pytest.approx(25)  # of a thumbnail
    assert not [record for record in warned.messages if "a reduced copy" not in record]


def test_an_absurd_scale_that_is_let_through_fits_in_memory(skipped, sections, trained) -> None:
    skipped("scale_plausible", "scales_agree")
    few = sections["S3"][:3].copy()
    hggep.tl.predict(few, trained, mpp=1e-7)
    assert np.isfinite(few[:, trained.genes].layers["hggep"]).all()


# --- what is noted of it


@pytest.fixture
def unscaled(sections):
    """A section that says nothing of its scale."""
    adata = sections["S3"]
    del adata.uns["spatial"]["S3"]["scalefactors"]["microns_per_pixel"]
    return adata


def test_the_scale_and_its_source_are_noted(sections, trained) -> None:
    hggep.tl.predict(sections["S3"], trained)
    noted = sections["S3"].uns["hggep"]["sections"]
    assert list(noted["mpp_source"]) == ["scalefactors"]
    assert (noted["mpp"][0], noted["mpp_fullres"][0]) == (1, 1)
    assert noted["spacing_um"][0] == pytest.approx(100)
    assert sections["S3"].uns["hggep"]["training_spacing_um"] == pytest.approx([100, 100])


def test_plots_and_domains_take_what_the_prediction_noted(unscaled, trained, warned) -> None:
    import matplotlib.pyplot as plt

    hggep.tl.predict(unscaled, trained, mpp=1.25)
    gene = trained.genes[0]
    assert not warned.messages

    def bar(axes):
        return [artist.txt_label.get_text() for artist in axes[0].artists if hasattr(artist, "txt_label")]

    assert bar(hggep.pl.gene_map(unscaled, gene)) == bar(hggep.pl.gene_map(unscaled, gene, mpp=1.25)) != []
    # um per full-resolution px: of the reduced copy they are more
    (reduced,) = open_sections(unscaled, image_key="hires", noted="hggep")
    scale = unscaled.uns["spatial"]["S3"]["scalefactors"]["tissue_hires_scalef"]
    assert (reduced.mpp, reduced.mpp_source) == (pytest.approx(1.25 / scale), "noted")
    unscaled.obs["hggep_domain"] = pd.Categorical(["0"] * unscaled.n_obs)
    assert bar(hggep.pl.domains(unscaled))
    assert only(unscaled, noted=["other", "hggep"], mpp=2.0).mpp == 2.0
    assert not warned.messages
    assert only(unscaled).mpp is None
    assert "unknown" in warned.text
    plt.close("all")


def test_tiles_know_whose_word_their_scale_is(tmp_path, trained, warned) -> None:
    """What the caller said against the file is said once, and not refused when the tiles are predicted."""
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    options = {"photometric": "rgb", "resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **options)  # 1 um per px
    mask = hggep.pp.TissueMask(np.ones((40, 40), bool), np.full(2, 10.0), None)
    of_file = hggep.pp.tile(path, model=trained, tissue=mask)
    assert not warned.messages
    assert (only(of_file).mpp, only(of_file).mpp_source) == (1, "scalefactors")
    given = hggep.pp.tile(path, model=trained, tissue=mask, mpp=0.4)
    assert "`mpp=` says 0.4 um per px, but the image file" in warned.text
    hggep.tl.predict(given, trained)
    assert given.uns["hggep"]["sections"]["mpp_source"][0] == "mpp="
    assert given.uns["hggep"]["sections"]["mpp"][0] == 0.4


@pytest.mark.parametrize("method", ["ridge", "hggep"])
def test_models_know_how_far_apart_their_spots_were(method, sections, trained, tmp_path, warned) -> None:
    training = {name: sections[name] for name in ("S1", "S2")}
    options = {"weights": None, "device": "cpu", "genes": 20}
    model = trained if method == "hggep" else hggep.tl.fit(training, method=method, **options)
    assert model.spacing_um == pytest.approx((100, 100))
    assert "spots 100 um apart" in repr(model)
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model")
    assert (again.spacing_um, again.reduction) == (model.spacing_um, model.reduction)
    dense = hggep.pp.tile(
        sections["S3"].uns["spatial"]["S3"]["metadata"]["source_image_path"], spacing_um=16, mpp=1.0, model=model
    )[:40].copy()
    warned.clear()
    hggep.tl.predict(sections["S3"], again, device="cpu")
    assert "apart" not in warned.text
    hggep.tl.predict(dense, again, device="cpu")
    assert "its spots lie 16 um apart, those that the model was trained on 100 um" in warned.text
    # of a model saved before it was noted
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    del content["spacing_um"], content["reduction"], content["checksum"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(content))
    older = type(model).load(tmp_path / "model")
    assert (older.spacing_um, older.reduction) == (None, 1.0)
    assert "apart" not in repr(older)


def test_a_reduced_copy_of_unknown_scale_is_looked_at_as_the_whole(unscaled, trained) -> None:
    """Where um are unknown, full-resolution px are taken as equal: hires patches show the same, less sharp."""
    entry = unscaled.uns["spatial"]["S3"]
    with SectionImage.from_file(entry["metadata"].pop("source_image_path")) as image:
        entry["images"]["hires"] = image.thumbnail(max(image.shape) // 2)
        entry["scalefactors"]["tissue_hires_scalef"] = entry["images"]["hires"].shape[1] / image.shape[1]
    hggep.tl.predict(unscaled, trained, device="cpu")
    known = hggep.tl.predict(unscaled, trained, device="cpu", mpp=1.0, copy=True)
    assert np.isnan(unscaled.uns["hggep"]["sections"]["mpp"][0])
    np.testing.assert_allclose(
        unscaled[:, trained.genes].layers["hggep"], known[:, trained.genes].layers["hggep"], atol=1e-5
    )


# --- SpatialData


def hd_sdata(bin_um=16, *, squares=True, kept=slice(None), name="P1_square_{:03}um", barcodes=True, reader=None):
    """As spatialdata-io reads Visium HD: squares or circles in full-resolution px, no scale factors."""
    sd = pytest.importorskip("spatialdata")
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    table = hd(bin_um, 20.0, barcodes=barcodes)[kept].copy()
    xy, image = table.obsm["spatial"], table.uns["spatial"]["A"]["images"]["full"]
    name = name.format(bin_um)
    shapes = (
        ShapesModel.parse(GeoDataFrame(geometry=box(*(xy - 10).T, *(xy + 10).T)))
        if squares
        else ShapesModel.parse(xy, geometry=0, radius=10.0)
    )
    del table.uns["spatial"], table.obsm["spatial"]
    table.obs["region"] = pd.Categorical([name] * table.n_obs)
    table.obs["location_id"] = shapes.index.to_numpy()
    table = TableModel.parse(table, region=name, region_key="region", instance_key="location_id")
    return sd.SpatialData(
        images={"P1_full_image": Image2DModel.parse(image.transpose(2, 0, 1), dims=("c", "y", "x"))},
        shapes={name: shapes},
        tables={f"square_{bin_um:03}um": table},
        attrs={"spatialdata_io_reader": reader} if reader else {},
    )


@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("bin_um", [2, 8, 16])
@pytest.mark.parametrize("kept", [slice(None), slice(0, 90, 23), slice(0, 1)])
def test_visium_hd_of_spatialdata_io(squares, bin_um, kept) -> None:
    section = only(hd_sdata(bin_um, squares=squares, kept=kept))
    assert (section.mpp, section.mpp_source) == (pytest.approx(bin_um / 20), "spots")
    assert section.spacing_um == pytest.approx(bin_um)


def test_visium_hd_by_shapes_or_barcodes_alone() -> None:
    assert only(hd_sdata(8, barcodes=False)).mpp == pytest.approx(0.4)
    assert only(hd_sdata(8, name="bins")).mpp == pytest.approx(0.4)
    assert only(hd_sdata(8, name="bins", barcodes=False)).mpp is None


def visium_sdata(reader=None, *, barcodes=True, hires=0.25):
    """As spatialdata-io reads Visium without its full-resolution image."""
    sd = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    table = visium(80.0, barcodes=barcodes)
    xy, image = table.obsm["spatial"], table.uns["spatial"]["A"]["images"]["full"].transpose(2, 0, 1)
    to_hires = {"P1": Identity(), "P1_downscaled_hires": Scale([hires, hires], axes=("x", "y"))}
    shapes = ShapesModel.parse(xy, geometry=0, radius=20.0, transformations=to_hires)
    del table.uns["spatial"], table.obsm["spatial"]
    table.obs["region"] = pd.Categorical(["P1"] * table.n_obs)
    table.obs["spot_id"] = shapes.index.to_numpy()
    table = TableModel.parse(table, region="P1", region_key="region", instance_key="spot_id")
    image = Image2DModel.parse(image, dims=("c", "y", "x"), transformations={"P1_downscaled_hires": Identity()})
    return sd.SpatialData(
        images={"P1_hires_image": image},
        shapes={"P1": shapes},
        tables={"table": table},
        attrs={"spatialdata_io_reader": reader} if reader else {},
    )


@pytest.mark.parametrize(("reader", "barcodes"), [("visium", False), (None, True)])
def test_visium_of_spatialdata_io(reader, barcodes) -> None:
    section = only(visium_sdata(reader, barcodes=barcodes))
    assert section.mpp == pytest.approx(100 / 80 / 0.25)
    assert section.mpp_fullres == pytest.approx(100 / 80)


def test_a_reduced_copy_of_unknown_scale_has_larger_px() -> None:
    section = only(visium_sdata(barcodes=False))
    assert (section.mpp, section.reduction) == (None, pytest.approx(4))


def test_a_coordinate_system_against_the_bins(warned) -> None:
    from spatialdata.transformations import Scale, set_transformation

    sdata = hd_sdata(16)
    set_transformation(sdata.images["P1_full_image"], Scale([0.85, 0.85], axes=("x", "y")), "um")
    section = only(sdata)
    assert (section.mpp, section.mpp_source) == (pytest.approx(0.85), "coordinate system")
    assert not warned.messages
    set_transformation(sdata.images["P1_full_image"], Scale([0.25, 0.25], axes=("x", "y")), "um")
    with pytest.raises(ValueError, match=r"coordinate system 'um' says 0\.25 .*bins, which lie 16 um apart, say 0\.8"):
        open_sections(sdata)
    set_transformation(sdata.images["P1_full_image"], Scale([250, 250], axes=("x", "y")), "um")
    with pytest.raises(ValueError, match="nanometres"):
        open_sections(sdata)


# --- no false alarm on what is at hand


@pytest.mark.parametrize("name", ["B4", "C5", "MOB1", "MOB3"])
def test_real_sections(name, shared, warned, monkeypatch) -> None:
    """Legacy arrays; of her2st 200 um are one array step, of mob two: its spots lie 141 um apart, in a checkerboard."""
    monkeypatch.setattr(hggep.settings, "dataset_dir", shared / "data")
    adata = (hggep.datasets.mob if name.startswith("MOB") else hggep.datasets.her2st)(name)[name]
    noted = adata.uns["spatial"][name]["scalefactors"]["microns_per_pixel"]
    section = only(adata)
    assert (section.mpp, section.mpp_source) == (noted, "scalefactors")
    expected = 200 / np.sqrt(2) if name.startswith("MOB") else 200
    assert section.spacing_um == pytest.approx(expected, rel=3e-3)
    del adata.uns["spatial"][name]["scalefactors"]["microns_per_pixel"]
    rng = np.random.default_rng(0)
    for share in (1, 0.1):
        some = adata[np.sort(rng.permutation(adata.n_obs)[: round(share * adata.n_obs)])].copy()
        assert only(some).mpp == pytest.approx(noted, rel=0.01)
    if not name.startswith("MOB"):
        del some.obs["array_row"]
        assert only(some).mpp == pytest.approx(noted, rel=0.02)
    assert not warned.messages


def test_synthetic_sections(sections, warned) -> None:
    for adata in sections.values():
        section = only(adata)
        assert (section.mpp, section.mpp_source) == (1.0, "scalefactors")
        assert section.spacing_um == pytest.approx(100)
    assert not warned.messages
