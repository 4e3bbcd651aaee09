"""Gene maps: what is drawn is compared with the data themselves, and with rendered pixels."""

import re

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse

from hggep_sc import pl
from hggep_sc.section import open_sections, write_prediction

HEIGHT, WIDTH, MPP, DIAMETER = 400, 600, 5.0, 11.0
GENES = ["GNAS", "FASN", "CD74", "ACTB", "MUC1"]
PREDICTED = ["CD74", "GNAS", "MUC1"]
BLANK = 7  # spot where nothing was counted


def grid() -> np.ndarray:
    x, y = np.meshgrid(200 + 30.0 * np.arange(8), 150 + 30.0 * np.arange(6))
    return np.column_stack([x.ravel(), y.ravel()]) + np.random.default_rng(1).uniform(-4, 4, (48, 2))


def image_of_coordinates() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns * 255 / WIDTH, rows * 255 / HEIGHT, np.full_like(rows, 9)], axis=-1).astype(np.uint8)


def make_table() -> ad.AnnData:
    counts = np.random.default_rng(0).poisson([1, 3, 8, 20, 4], size=(48, 5)).astype(np.float32)
    counts[BLANK] = 0
    table = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    table.obs_names = [f"spot{i}" for i in range(48)]
    return table


def make_adata(library: str = "A", **scalefactors: float) -> ad.AnnData:
    adata = make_table()
    adata.obsm["spatial"] = grid()
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": DIAMETER, "microns_per_pixel": MPP}
    adata.uns["spatial"] = {
        library: {
            "images": {"hires": image_of_coordinates()},
            "scalefactors": {k: v for k, v in (factors | scalefactors).items() if v is not None},
            "metadata": {},
        }
    }
    return adata


def predict(
    data,
    *,
    log_base: str = "e",
    normalize: str = "library",
    key: str = "hggep",
    seed: int = 3,
    role: str = "held out",
    **choice,
) -> np.ndarray:
    """Write an invented prediction (on the recorded scale); returns it."""
    sections = open_sections(data, **choice)
    names = np.array([section.name for section in sections], dtype=object)
    rng = np.random.default_rng(seed)
    results = [(rng.uniform(1, 3, (len(s.xy), 3)).astype("f4"), np.zeros((len(s.xy), 2), "f4")) for s in sections]
    of_sections = {"name": names, "role": np.full(len(names), role, dtype=object)}
    params = {"normalize": normalize, "target_sum": 1000.0, "log_base": log_base, "sections": of_sections}
    write_prediction(data, sections, results, genes=PREDICTED, key=key, params=params)
    return results[0][0]


def spots_of(ax: Axes):
    (spots,) = [c for c in ax.collections if isinstance(c, EllipseCollection | PolyCollection)]
    return spots


def expected_observed(adata: ad.AnnData, gene: str, totals: np.ndarray | None = None) -> np.ndarray:
    counts = adata.X.toarray().astype(float)
    totals = counts.sum(1) if totals is None else totals
    with np.errstate(invalid="ignore"):
        return np.log1p(1000 * counts[:, GENES.index(gene)] / totals)


def scale_bar_of(ax: Axes) -> list[AnchoredSizeBar]:
    return [artist for artist in ax.get_children() if isinstance(artist, AnchoredSizeBar)]


@pytest.mark.parametrize("normalize", ["library", "panel"])
@pytest.mark.parametrize(("log_base", "unit"), [("e", 1.0), ("10", np.log(10))])
def test_values_are_natural_log_expression_and_the_title_holds_their_correlation(log_base, unit, normalize) -> None:
    adata = make_adata()
    predicted = predict(adata, log_base=log_base, normalize=normalize)
    axes = pl.gene_map(adata, ["GNAS", "MUC1"])
    assert len(axes) == 4
    assert all(isinstance(ax, Axes) for ax in axes)
    panel = adata[:, PREDICTED].X.toarray().astype(float).sum(1)
    for row, gene in enumerate(["GNAS", "MUC1"]):
        observed = expected_observed(adata, gene, panel if normalize == "panel" else None)
        seen = np.arange(48) != BLANK
        left, right = (spots_of(ax) for ax in axes[2 * row : 2 * row + 2])
        drawn = np.ma.filled(left.get_array(), np.nan)
        np.testing.assert_allclose(drawn[seen], observed[seen], rtol=1e-5)
        values = predicted[:, PREDICTED.index(gene)] * unit
        np.testing.assert_allclose(right.get_array(), values, rtol=1e-5)
        r = np.corrcoef(values[seen], observed[seen])[0, 1]
        assert axes[2 * row].get_title() == f"{gene}\nobserved"
        assert axes[2 * row + 1].get_title() == f"{gene}\npredicted, r = {r:.2f}"


def test_the_title_says_that_the_model_was_trained_on_the_section() -> None:
    adata = make_adata()
    predict(adata, role="train")
    predict(adata, key="other")
    titles = [ax.get_title() for ax in pl.gene_map(adata, "GNAS", key=["hggep", "other"])]
    assert [title.endswith("(trained on)") for title in titles] == [False, True, False]


def test_every_panel_has_a_scale_of_its_own_so_that_a_shrunken_prediction_shows_what_it_tells() -> None:
    adata = make_adata()
    predict(adata)
    observed = np.nan_to_num(expected_observed(adata, "GNAS"))
    adata.layers["hggep"][:, GENES.index("GNAS")] = 2 + 0.01 * observed  # right, and far too even
    left, right = pl.gene_map(adata, "GNAS")
    assert right.get_title() == "GNAS\npredicted, r = 1.00"
    for ax in (left, right):
        values = spots_of(ax).get_array().compressed()
        np.testing.assert_allclose(spots_of(ax).get_clim(), np.percentile(values, [1, 99]), rtol=1e-6)
    seen = np.arange(48) != BLANK
    colours = [spots_of(ax).norm(spots_of(ax).get_array())[seen] for ax in (left, right)]
    # each fits its own hundredths, with one spot more on the right
    assert np.corrcoef(*np.clip(colours, 0, 1))[0, 1] > 0.99
    np.testing.assert_allclose(*np.clip(colours, 0, 1), atol=0.1)


def test_one_scale_for_a_gene_where_it_is_asked_for() -> None:
    adata = make_adata()
    predict(adata)
    adata.layers["hggep"][3, GENES.index("GNAS")] = 50  # an outlier must not bleach the others
    axes = pl.gene_map(adata, ["GNAS", "CD74"], shared_scale=True)
    a, b, c, d = (spots_of(ax) for ax in axes)
    assert a.get_clim() == b.get_clim()
    assert c.get_clim() == d.get_clim()
    assert a.get_clim() != c.get_clim()
    pooled = np.ma.concatenate([a.get_array(), b.get_array()]).compressed()
    low, high = a.get_clim()
    assert 0.97 <= np.mean((pooled >= low) & (pooled <= high)) < 1
    assert high < 50
    assert [len(ax.child_axes) for ax in axes] == [0, 1, 0, 1]


def test_limits_are_values_percentiles_or_the_ends_for_all_genes_or_each() -> None:
    adata = make_adata()
    predict(adata)
    axes = pl.gene_map(adata, ["GNAS", "CD74"], vmin=[0, "p10"], vmax=[None, "p75.5"])
    for ax, gene in zip(axes, ["GNAS", "GNAS", "CD74", "CD74"], strict=True):
        values = spots_of(ax).get_array().compressed()
        expected = (0, values.max()) if gene == "GNAS" else np.percentile(values, [10, 75.5])
        np.testing.assert_allclose(spots_of(ax).get_clim(), expected, rtol=1e-6)
    for ax in pl.gene_map(adata, ["GNAS", "CD74"], vmin=1, vmax=3.5):
        assert spots_of(ax).get_clim() == (1, 3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vmin": "1%"}, "vmin='1%' must be a number, a percentile such as 'p99', or None for the least value"),
        ({"vmax": "p101"}, "vmax='p101' must be .* or None for the greatest value"),
        ({"vmax": np.nan}, "vmax=nan must be a number"),
        ({"vmin": True}, "vmin=True must be a number"),
        ({"vmin": [0, 1]}, "vmin has 2 limits for 1 genes: give one for all, or one for each"),
        ({"vmin": 3, "vmax": 3}, "vmin=3 must be below vmax=3"),
        ({"vmin": "p99", "vmax": "p1"}, "vmin='p99' must be below vmax='p1'"),
        ({"vmin": 100}, r"gene 'GNAS', observed: vmin=100 is 100 and not below vmax='p99', which is .* give both as"),
        ({"cmap": "virids"}, "cmap='virids' is no colour map .*; similar names: viridis"),
        ({"alpha": 2}, "alpha=2 must be a finite number above 0 and of at most 1"),
        ({"spot_size": 0}, "spot_size=0 must be a finite number above 0"),
        ({"ncols": 0}, "ncols=0 must be at least 1"),
        ({"ncols": 1.5}, "ncols=1.5 must be a whole number"),
    ],
)
def test_arguments_that_mean_nothing_are_named(arguments, message) -> None:
    adata = make_adata()
    predict(adata)
    with pytest.raises((TypeError, ValueError), match=message):
        pl.gene_map(adata, "GNAS", **arguments)
    assert not plt.get_fignums()


def test_every_panel_has_a_colour_bar_and_the_last_in_a_row_names_the_unit() -> None:
    adata = make_adata()
    predict(adata)
    axes = pl.gene_map(adata, "GNAS")
    for ax in axes:
        (bar,) = ax.child_axes
        np.testing.assert_allclose(bar.get_ylim(), spots_of(ax).get_clim())
    units = [ax.child_axes[0].get_ylabel().replace("\n", " ") for ax in axes]
    assert units == ["", "ln(1 + counts per 1,000)"]


def test_the_unit_stays_beside_its_own_panel() -> None:
    adata = make_adata()
    adata.obsm["spatial"] = grid() * [1, 0.1] + [0, 100]
    predict(adata, normalize="panel")
    upper = pl.gene_map(adata, ["GNAS", "CD74", "MUC1"])[1]
    upper.figure.canvas.draw()
    label, panel = upper.child_axes[0].yaxis.label.get_window_extent(), upper.get_window_extent()
    assert label.height < panel.height + 5
    assert label.y0 > panel.y0 - 5


@pytest.mark.parametrize(("ncols", "shape"), [(None, (2, 2)), (4, (1, 4)), (3, (2, 3)), (9, (1, 4))])
def test_panels_beside_each_other(ncols, shape, within_figure) -> None:
    adata = make_adata()
    predict(adata)
    axes = pl.gene_map(adata, ["GNAS", "CD74"], ncols=ncols)
    titles = [ax.get_title().split("\n")[0] for ax in axes]
    assert titles == ["GNAS", "GNAS", "CD74", "CD74"]
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == shape
    places = [ax.get_subplotspec().rowspan.start * shape[1] + ax.get_subplotspec().colspan.start for ax in axes]
    assert places == [0, 1, 2, 3]
    assert len(axes[0].figure.axes) == 4
    within_figure(axes[0].figure)


def test_predictions_alone_are_four_in_a_row() -> None:
    adata = make_adata()
    predict(adata)
    adata.X = None
    axes = pl.gene_map(adata, PREDICTED)
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (1, 3)


def test_squares_let_the_tissue_through_and_circles_need_not() -> None:
    for scalefactors, alpha in (({}, 1.0), ({"bin_size_um": 55.0}, 0.6)):
        adata = make_adata(**scalefactors)
        predict(adata)
        assert spots_of(pl.gene_map(adata, "GNAS")[0]).get_alpha() == alpha
        assert spots_of(pl.gene_map(adata, "GNAS", alpha=0.3)[0]).get_alpha() == 0.3


@pytest.mark.parametrize("nowhere", [[], [0, 5]])
def test_spots_without_a_value_are_not_drawn(nowhere) -> None:
    adata = make_adata()
    predict(adata)
    adata.layers["hggep"][nowhere] = np.nan
    left, right = (spots_of(ax) for ax in pl.gene_map(adata, "GNAS"))
    np.testing.assert_array_equal(np.flatnonzero(np.ma.getmaskarray(left.get_array())), [BLANK])
    np.testing.assert_array_equal(np.flatnonzero(np.ma.getmaskarray(right.get_array())), nowhere)
    right.figure.canvas.draw()
    assert (right.get_facecolor()[nowhere, 3] == 0).all()
    assert (left.get_facecolor()[:, 3] == 0).sum() == 1


def test_spots_outside_the_tissue_are_not_drawn() -> None:
    adata = make_adata()
    adata.obs["in_tissue"] = (np.arange(48) % 4 > 0).astype(int)
    predicted = predict(adata)
    right = spots_of(pl.gene_map(adata, "CD74")[1])
    np.testing.assert_allclose(right.get_offsets(), grid()[np.arange(48) % 4 > 0])
    np.testing.assert_allclose(right.get_array(), predicted[:, 0])


def painted(ax: Axes, column: int) -> np.ndarray:
    """Corners (left, top, right, bottom; data units) of what one spot alone paints, from rendered pixels."""
    spots = spots_of(ax)
    values = np.full(48, np.nan)
    values[column] = 1.0
    spots.set(array=np.ma.masked_invalid(values), cmap=mpl.colors.ListedColormap(["#00ff00"]), alpha=1)
    figure = ax.figure
    figure.set_dpi(300)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    inside = np.zeros(pixels.shape[:2], bool)
    box = ax.get_window_extent()
    inside[int(len(pixels) - box.y1) : int(len(pixels) - box.y0), int(box.x0) : int(box.x1)] = True
    rows, columns = np.nonzero(inside & (np.abs(pixels - [0, 255, 0]).sum(2) < 300))
    low = ax.transData.inverted().transform((columns.min(), len(pixels) - rows.min()))
    high = ax.transData.inverted().transform((columns.max() + 1, len(pixels) - rows.max() - 1))
    return np.array([*low, *high])


@pytest.mark.parametrize("size", [1.0, 1.5])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_a_spot_covers_its_own_place_in_the_image(shape, size) -> None:
    adata = make_adata(bin_size_um=55.0 if shape == "square" else None)
    predict(adata)
    ax = pl.gene_map(adata, "GNAS", image=False, spot_size=size)[1]
    left, top, right, bottom = painted(ax, column=20)
    x, y = grid()[20]
    # rendered at about 3 px per data unit
    np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], [x, y], atol=0.5)
    np.testing.assert_allclose([right - left, bottom - top], DIAMETER * size, atol=1.0)


def test_unknown_diameter_leaves_gaps_between_the_spots() -> None:
    adata = make_adata(spot_diameter_fullres=None)
    predict(adata)
    left, _, right, _ = painted(pl.gene_map(adata, "GNAS", image=False)[1], column=20)
    assert 10 < right - left < 26


@pytest.mark.parametrize("panel_px", [1000, 40])  # as it is, and reduced
@pytest.mark.parametrize("crop", [True, False])
def test_the_image_lies_where_its_pixels_are(crop, panel_px, monkeypatch) -> None:
    monkeypatch.setattr("hggep_sc.pl._tissue.PANEL_PX", panel_px)
    adata = make_adata()
    predict(adata)
    for ax in pl.gene_map(adata, "GNAS", crop=crop):
        (drawn,) = ax.images
        left, right, bottom, top = drawn.get_extent()
        pixels = 255 - (255 - drawn.get_array().astype(float)) / 0.65  # undo the fading
        height, width = pixels.shape[:2]
        assert max(height, width) <= panel_px * 1.1 + 2
        x = left + (np.arange(width) + 0.5) * (right - left) / width
        y = top + (np.arange(height) + 0.5) * (bottom - top) / height
        np.testing.assert_allclose(pixels[..., 0], np.broadcast_to(x * 255 / WIDTH, (height, width)), atol=2.5)
        np.testing.assert_allclose(
            pixels[..., 1], np.broadcast_to(y[:, None] * 255 / HEIGHT, (height, width)), atol=2.5
        )
        assert ax.yaxis_inverted()
        assert not ax.xaxis_inverted()
        if crop:
            (x0, x1), (y1, y0) = ax.get_xlim(), ax.get_ylim()
            low, high = grid().min(0) - DIAMETER / 2, grid().max(0) + DIAMETER / 2
            np.testing.assert_array_less([x0, y0], low)
            np.testing.assert_array_less(high, [x1, y1])
            assert x1 - x0 < 0.6 * WIDTH
            np.testing.assert_array_less([left, top, x1, y1], [x0 + 1e-9, y0 + 1e-9, right + 1e-9, bottom + 1e-9])
        else:
            assert (ax.get_xlim(), ax.get_ylim()) == ((0, WIDTH), (HEIGHT, 0))
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0


def test_spots_at_the_edge_of_the_image_are_whole() -> None:
    adata = make_adata()
    adata.obsm["spatial"] = grid() - grid().min(0) + 1
    predict(adata)
    ax = pl.gene_map(adata, "GNAS")[0]
    assert ax.get_xlim()[0] < -DIAMETER / 2
    assert ax.images[0].get_extent()[0] == 0
    beyond = to_rgb(ax.get_facecolor())
    assert beyond != (1, 1, 1)


def test_no_image() -> None:
    adata = make_adata()
    predict(adata)
    with_image, without = pl.gene_map(adata, "GNAS")[0], pl.gene_map(adata, "GNAS", image=False)[0]
    assert not without.images
    assert (without.get_xlim(), without.get_ylim()) == (with_image.get_xlim(), with_image.get_ylim())


@pytest.mark.parametrize("mpp", [0.2, 0.5, 4.6, 19.0])
def test_the_scale_bar_is_as_long_as_it_says(mpp) -> None:
    adata = make_adata(microns_per_pixel=mpp)
    predict(adata)
    left, right = pl.gene_map(adata, "GNAS")
    (bar,) = scale_bar_of(left)
    assert not scale_bar_of(right)
    number, unit = re.fullmatch(r"([\d.]+) (mm|µm)", bar.txt_label.get_text()).groups()
    length = float(number) * (1000 if unit == "mm" else 1)
    (rectangle,) = bar.size_bar.get_children()
    assert rectangle.get_width() == pytest.approx(length / mpp)
    assert float(f"{length:.6e}".split("e")[0]) in (1, 2, 5)
    assert 0.1 < rectangle.get_width() / np.ptp(left.get_xlim()) <= 0.25


def test_no_scale_bar_where_the_scale_is_unknown() -> None:
    adata = make_adata(microns_per_pixel=None)
    predict(adata)
    assert not scale_bar_of(pl.gene_map(adata, "GNAS")[0])
    (bar,) = scale_bar_of(pl.gene_map(adata, "GNAS", mpp=2.0)[0])
    assert bar.txt_label.get_text() == "100 µm"


@pytest.mark.parametrize("empty", ["zeros", "none"])
def test_without_counts_the_predicted_panel_stands_alone(empty) -> None:
    adata = make_adata()
    predict(adata)
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32) if empty == "zeros" else None
    axes = pl.gene_map(adata, ["GNAS", "CD74"])
    assert [ax.get_title() for ax in axes] == ["GNAS\npredicted", "CD74\npredicted"]
    assert len(scale_bar_of(axes[0])) == 1
    assert axes[0].child_axes


def test_a_constant_gene_has_no_correlation() -> None:
    adata = make_adata()
    predict(adata)
    adata.layers["hggep"][:, GENES.index("GNAS")] = 1.0
    right = pl.gene_map(adata, "GNAS")[1]
    assert right.get_title() == "GNAS\npredicted, r undefined"
    adata.X = None
    (alone,) = pl.gene_map(adata, "GNAS")  # one value, no range
    alone.figure.canvas.draw()


def test_counts_are_read_from_the_layer_that_was_used_or_named() -> None:
    adata = make_adata()
    predict(adata)
    adata.layers["raw"] = adata.X.copy()
    adata.layers["other"] = adata.X.copy()
    adata.layers["other"].data[:] = 1
    adata.X = None
    adata.uns["hggep"]["counts_layer"] = "raw"
    recorded = spots_of(pl.gene_map(adata, "GNAS")[0]).get_array()
    other = spots_of(pl.gene_map(adata, "GNAS", observed_layer="other")[0]).get_array()
    adata.X = adata.layers["raw"]
    np.testing.assert_allclose(recorded.compressed(), np.delete(expected_observed(adata, "GNAS"), BLANK), rtol=1e-5)
    assert not np.allclose(recorded.compressed(), other.compressed())
    with pytest.raises(KeyError, match=r"observed_layer.*'row'.*raw"):
        pl.gene_map(adata, "GNAS", observed_layer="row")


def test_given_axes_are_used_in_order_and_must_be_as_many_as_the_panels() -> None:
    adata = make_adata()
    predict(adata)
    figure, axes = plt.subplots(2, 2)
    n_figures = len(plt.get_fignums())
    returned = pl.gene_map(adata, ["GNAS", "CD74"], ax=axes)
    assert [id(ax) for ax in returned] == [id(ax) for ax in axes.ravel()]
    assert [ax.get_title().split("\n")[0] for ax in returned] == ["GNAS", "GNAS", "CD74", "CD74"]
    assert len(plt.get_fignums()) == n_figures
    with pytest.raises(ValueError, match=r"4 Axes, but 2 are needed: observed and predicted"):
        pl.gene_map(adata, "GNAS", ax=axes)
    with pytest.raises(TypeError, match=r"Axes.*Figure"):
        pl.gene_map(adata, "GNAS", ax=figure)
    adata.X = None
    single = plt.figure().add_subplot()
    assert pl.gene_map(adata, "GNAS", ax=single) == [single]


def test_what_cannot_be_drawn_is_named() -> None:
    adata = make_adata()
    with pytest.raises(KeyError, match=r"hggep_sc\.tl\.predict"):
        pl.gene_map(adata, "GNAS")
    predict(adata)
    with pytest.raises(KeyError, match=r"'gnas' is not in the object.*GNAS"):
        pl.gene_map(adata, ["CD74", "gnas"])
    with pytest.raises(KeyError, match="'FASN' is not predicted by the model"):
        pl.gene_map(adata, "FASN")
    with pytest.raises(KeyError, match=r"genes 'FASN', 'ACTB' are not predicted by the model, though in the object"):
        pl.gene_map(adata, ["FASN", "GNAS", "ACTB"])
    with pytest.raises(KeyError, match="gene 'TP53' is not in the object; predicted are 3 genes"):
        pl.gene_map(adata, "TP53")
    with pytest.raises(KeyError, match=r"'ENSG00000087460' is not in the object.*Ensembl ids"):
        pl.gene_map(adata, "ENSG00000087460")
    with pytest.raises(ValueError, match="genes names 'GNAS' more than once"):
        pl.gene_map(adata, ["GNAS", "CD74", "GNAS"])
    with pytest.raises(TypeError, match="genes is of type set: pass a predicted gene as a str, or several as a list"):
        pl.gene_map(adata, {"GNAS", "CD74"})
    with pytest.raises(TypeError, match="genes is of type int"):
        pl.gene_map(adata, 5)
    with pytest.raises(ValueError, match="genes is empty"):
        pl.gene_map(adata, [])
    with pytest.raises(ValueError, match="key is empty"):
        pl.gene_map(adata, "GNAS", key=[])
    with pytest.raises(KeyError, match="no prediction 'ridge'"):
        pl.gene_map(adata, "GNAS", key=["hggep", "ridge"])
    assert not plt.get_fignums()


def test_several_libraries_of_one_object_are_rows_and_one_can_be_chosen() -> None:
    both = ad.concat([make_adata("A"), make_adata("B")], uns_merge="unique", index_unique="-")
    both.obs["slide"] = ["A"] * 48 + ["B"] * 48
    predict(both, library_key="slide")
    axes = pl.gene_map(both, "GNAS", library_key="slide")
    titles = ["A: GNAS\nobserved", "A: GNAS\npredicted", "B: GNAS\nobserved", "B: GNAS\npredicted"]
    assert [ax.get_title().split(",")[0] for ax in axes] == titles
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    np.testing.assert_allclose(spots_of(axes[3]).get_array(), both.layers["hggep"][48:, 0])
    alone = pl.gene_map(both, "GNAS", library_key="slide", library_id="B")
    assert [ax.get_title().split(",")[0] for ax in alone] == ["GNAS\nobserved", "GNAS\npredicted"]
    np.testing.assert_allclose(spots_of(alone[1]).get_array(), both.layers["hggep"][48:, 0])
    with pytest.raises(KeyError, match=r"library_id.*'C'.*'A', 'B'"):
        pl.gene_map(both, "GNAS", library_key="slide", library_id="C")


def test_normalised_values_are_no_counts_so_that_the_prediction_stands_alone(warned) -> None:
    adata = make_adata()
    predict(adata)
    adata.layers["normalised"] = adata.X = adata.X * 0.5
    axes = pl.gene_map(adata, "GNAS")
    assert [ax.get_title() for ax in axes] == ["GNAS\npredicted"]
    assert "only the prediction is drawn" in warned.text
    assert "non-integer values" in warned.text
    with pytest.raises(ValueError, match="non-integer values"):  # the layer that the user names is meant
        pl.gene_map(adata, "GNAS", observed_layer="normalised")


def test_of_a_slide_that_was_never_sequenced_nothing_is_warned(warned) -> None:
    """Counts that may lie elsewhere are asked for; where they can lie nowhere the prediction is all there is."""
    adata = make_adata()
    predict(adata)
    counts = adata.X.copy()
    adata.X = adata.X * 0
    for without in (adata, sequenced := adata.copy()):
        if without is sequenced:
            sequenced.layers["counts"] = counts
        axes = pl.gene_map(without, "GNAS")
        assert [ax.get_title() for ax in axes] == ["GNAS\npredicted"]
        assert ("'counts'" in warned.text) == (without is sequenced)
    assert len(warned.messages) == 1


def test_several_predictions_stand_beside_what_was_observed() -> None:
    adata = make_adata()
    values = {"ridge": predict(adata, key="ridge", seed=1, log_base="10"), "hggep": predict(adata)}
    values["ridge"] = values["ridge"] * np.log(10)
    axes = pl.gene_map(adata, ["GNAS", "CD74"], key=["ridge", "hggep"])
    assert len(axes) == 6
    for row, gene in enumerate(["GNAS", "CD74"]):
        observed, *panels = axes[3 * row : 3 * row + 3]
        assert observed.get_title() == f"{gene}\nobserved"
        seen = np.arange(48) != BLANK
        for ax, (key, array) in zip(panels, values.items(), strict=True):
            array = array[:, PREDICTED.index(gene)]
            np.testing.assert_allclose(spots_of(ax).get_array(), array, rtol=1e-5)
            r = np.corrcoef(array[seen], expected_observed(adata, gene)[seen])[0, 1]
            assert ax.get_title() == f"{gene}\n{key}, r = {r:.2f}"
        assert len({spots_of(ax).get_clim() for ax in (observed, *panels)}) == 3
        assert [len(ax.child_axes) for ax in (observed, *panels)] == [1, 1, 1]


def test_panels_of_several_predictions_are_told_apart() -> None:
    adata = make_adata()
    for key in ("hggep", "observed"):
        predict(adata, key=key)
    with pytest.raises(ValueError, match="called 'observed' cannot stand beside what was observed: draw it alone"):
        pl.gene_map(adata, "GNAS", key=["hggep", "observed"])
    with pytest.raises(ValueError, match="key names 'hggep' more than once: name each once"):
        pl.gene_map(adata, "GNAS", key=["hggep", "hggep"])
    assert [ax.get_title().split(",")[0] for ax in pl.gene_map(adata, "GNAS", key="observed")] == [
        "GNAS\nobserved",
        "GNAS\npredicted",
    ]


def test_predictions_on_different_scales_have_no_common_observed_map() -> None:
    adata = make_adata()
    predict(adata, key="ridge", normalize="panel")
    predict(adata)
    with pytest.raises(ValueError, match="'ridge' and 'hggep' are on different scales"):
        pl.gene_map(adata, "GNAS", key=["ridge", "hggep"])
    predict(adata, normalize="panel")
    adata.var.loc["MUC1", "hggep_predicted"] = False
    with pytest.raises(ValueError, match=r"totals of different genes \(3 and 2\)"):
        pl.gene_map(adata, "GNAS", key=["ridge", "hggep"])


def test_several_sections_are_rows() -> None:
    sections = {"first": make_adata("A"), "second": make_adata("B")}
    wide = sections["second"]
    wide.obsm["spatial"] = grid() * [1, 0.5]
    for section in sections.values():
        predict(section)
    sections["first"].layers["hggep"] *= 2
    wide.X = None
    axes = pl.gene_map(sections, ["GNAS", "CD74"], mpp={"second": 2.0})
    assert [ax.get_title() for ax in axes] == [
        *("first: GNAS\nobserved", axes[1].get_title(), "first: CD74\nobserved", axes[3].get_title()),
        *("second: GNAS\npredicted", "second: CD74\npredicted"),
    ]
    clims = [spots_of(ax).get_clim() for ax in axes]
    assert len(set(clims)) == 6
    assert axes[1].get_subplotspec().colspan == axes[4].get_subplotspec().colspan
    assert len(axes[0].figure.axes) == 6  # nothing where there is no observed panel
    np.testing.assert_allclose(spots_of(axes[4]).get_offsets(), wide.obsm["spatial"])
    listed = pl.gene_map(list(sections.values()), "GNAS")
    assert [ax.get_title().split(":")[0] for ax in listed] == ["A", "A", "B"]
    with pytest.raises(ValueError, match="2 Axes, but 3 are needed: observed and predicted for each of 1 genes in"):
        pl.gene_map(sections, "GNAS", ax=plt.subplots(1, 2)[1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 0.4), (0.4, 1)])
def test_nothing_is_cut_off(shape, within_figure) -> None:
    adata = make_adata()
    adata.obsm["spatial"] = grid() * shape
    predict(adata)
    axes = pl.gene_map([adata], ["GNAS", "CD74", "MUC1"])
    within_figure(axes[0].figure)


def test_spatialdata_gives_the_same_map() -> None:
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    adata = make_adata()
    predict(adata)
    table = make_table()
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["spots"] * 48), np.arange(48)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    # shapes in um, and in another order than the table
    order = np.random.default_rng(0).permutation(48)
    shapes = ShapesModel.parse(grid()[order] * MPP, geometry=0, radius=DIAMETER * MPP / 2, index=pd.Index(order))
    transformation = {"global": Scale([MPP, MPP], axes=("x", "y"))}
    image = Image2DModel.parse(
        image_of_coordinates().transpose(2, 0, 1), dims=("c", "y", "x"), transformations=transformation
    )
    sdata = spatialdata.SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    predict(sdata)

    expected, found = pl.gene_map(adata, ["GNAS", "CD74"]), pl.gene_map(sdata, ["GNAS", "CD74"], mpp=MPP)
    assert [ax.get_title() for ax in found] == [ax.get_title() for ax in expected]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(spots_of(mine).get_offsets(), spots_of(theirs).get_offsets(), atol=1e-6)
        np.testing.assert_array_equal(spots_of(mine).get_array(), spots_of(theirs).get_array())
        np.testing.assert_array_equal(mine.images[0].get_array(), theirs.images[0].get_array())
        np.testing.assert_allclose(mine.get_xlim(), theirs.get_xlim(), atol=1e-6)
    labels = [scale_bar_of(axes[0])[0].txt_label.get_text() for axes in (found, expected)]
    assert labels[0] == labels[1]


def test_several_regions_of_one_spatialdata_are_rows() -> None:
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    table = ad.concat([make_table(), make_table()], index_unique="-", keys=["A", "B"])
    table.obs["region"] = pd.Categorical(["A"] * 48 + ["B"] * 48)
    table.obs["instance_id"] = np.tile(np.arange(48), 2)
    sdata = spatialdata.SpatialData(
        images={
            f"image_{name}": Image2DModel.parse(
                image_of_coordinates().transpose(2, 0, 1), dims=("c", "y", "x"), transformations={name: Identity()}
            )
            for name in "AB"
        },
        shapes={
            name: ShapesModel.parse(grid() - shift, geometry=0, radius=5.5, transformations={name: Identity()})
            for name, shift in (("A", 0), ("B", 20))
        },
        tables={"table": TableModel.parse(table, region=["A", "B"], region_key="region", instance_key="instance_id")},
    )
    predict(sdata)
    axes = pl.gene_map(sdata, "GNAS")
    titles = ["A: GNAS\nobserved", "A: GNAS\npredicted", "B: GNAS\nobserved", "B: GNAS\npredicted"]
    assert [ax.get_title().split(",")[0] for ax in axes] == titles
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    np.testing.assert_allclose(spots_of(axes[3]).get_offsets(), grid() - 20)
    np.testing.assert_array_equal(
        spots_of(axes[3]).get_array(), sdata.tables["table"].layers["hggep"][48:, GENES.index("GNAS")]
    )
    assert len(pl.gene_map(sdata, "GNAS", shapes_key="B")) == 2
