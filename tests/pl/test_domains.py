"""Domains: colours are matched by overlap, and titles hold scikit-learn's ARI of what is drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import adjusted_rand_score

from helpers import as_spatialdata, make_adata
from hggep_sc import pl
from hggep_sc.pl._style import COLOURS

REGION = np.repeat(["stroma", "tumour", "fat"], 10)  # of 30 spots
GREY = to_hex("0.8")


@pytest.fixture
def section():
    adata = make_adata()
    adata.obs["region"] = pd.Categorical(REGION)
    adata.obs["domain"] = pd.Categorical(pd.Series(REGION).map({"stroma": "2", "tumour": "0", "fat": "1"}).to_numpy())
    return adata


def colours_of(ax) -> list[str]:
    (spots,) = ax.collections
    return [to_hex(colour) for colour in spots.get_facecolor()]


def legend_of(ax) -> dict[str, str]:
    legend = ax.get_legend()
    shades = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    return dict(zip([text.get_text() for text in legend.get_texts()], shades, strict=True))


def test_renamed_domains_have_the_labels_colours(section) -> None:
    domain, region = pl.domains(section, "domain", label_key="region")
    assert colours_of(domain) == colours_of(region)
    assert len(set(colours_of(region))) == 3
    assert domain.get_title() == "domain\nARI = 1.00"
    assert region.get_title() == "region"


def test_most_spots_agree_in_colour(section) -> None:
    """Greedy pairing would give the largest overlap first, and agree on fewer spots."""
    #            stroma 10 spots   tumour 10 spots   fat 10 spots
    names = np.array([*"aaaaaabbbb", *"aaaaaccccc", *"cccccccccc"])
    section.obs["domain"] = pd.Categorical(names)
    domain, region = pl.domains(section, ["domain"], label_key="region")
    agree = sum(a == b for a, b in zip(colours_of(domain), colours_of(region), strict=True))
    from itertools import permutations

    best = max(
        sum(dict(zip("abc", order, strict=True))[name] == label for name, label in zip(names, REGION, strict=True))
        for order in permutations(["stroma", "tumour", "fat"])
    )
    assert agree == best == 19


def test_what_matches_nothing_has_a_colour_of_its_own(section) -> None:
    section.obs["domain"] = pd.Categorical([str(i % 12) for i in range(30)])
    section.obs["other"] = pd.Categorical([f"o{i % 5}" for i in range(30)])
    drawn = pl.domains(section, ["domain", "other"], label_key="region")
    domain, other, region = (legend_of(ax) for ax in drawn)
    assert len(set(domain.values())) == 12
    assert set(region.values()) < set(domain.values())
    unmatched = [set(legend.values()) - set(region.values()) for legend in (domain, other)]
    assert not unmatched[0] & unmatched[1]
    for ax, key in zip(drawn, ["domain", "other", "region"], strict=True):
        legend = legend_of(ax)
        assert colours_of(ax) == [legend[name] for name in section.obs[key]]


def test_the_first_column_leads_where_there_are_no_labels(section) -> None:
    first, second = pl.domains(section, ["region", "domain"])
    assert colours_of(first) == colours_of(second)
    assert list(legend_of(first).values()) == [colour.lower() for colour in COLOURS[:3]]
    assert [ax.get_title() for ax in (first, second)] == ["region", "domain"]


def test_no_label_need_be_excluded(section) -> None:
    section.obs["region"] = pd.Categorical(np.where(REGION == "fat", "undetermined", REGION))
    _, right = pl.domains(section, "domain", label_key="region", exclude_label=None)
    assert set(legend_of(right)) == {"stroma", "tumour", "undetermined"}
    assert GREY not in colours_of(right)


def test_a_number_and_its_text_in_one_column_are_refused(section) -> None:
    section.obs["domain"] = pd.Series([1, "1", 2] * 10, index=section.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"obs\['domain'\] holds '1' both as text and as another type; bring"):
        pl.domains(section, "domain")


@pytest.mark.parametrize("exclude", ["undetermined", ["undetermined", "fat"]])
def test_unlabelled_and_excluded_spots_are_grey_and_not_compared(section, exclude) -> None:
    labels = np.array(REGION, dtype=object)
    labels[[0, 11]] = None
    labels[[5, 25]] = "undetermined"
    section.obs["region"] = pd.Categorical(labels)
    domain = np.roll(REGION, 2).astype(object)
    domain[7] = None
    section.obs["domain"] = pd.Categorical(domain)
    left, right = pl.domains(section, "domain", label_key="region", exclude_label=exclude)
    out = pd.isna(labels) | np.isin(labels.astype(str), exclude)
    assert [colour == GREY for colour in colours_of(right)] == list(out)
    assert [colour == GREY for colour in colours_of(left)] == [i == 7 for i in range(30)]
    assert legend_of(right)["none"] == GREY
    assert not set(legend_of(right)) & set(exclude if isinstance(exclude, list) else [exclude])
    both = ~out & (np.arange(30) != 7)
    ari = adjusted_rand_score(labels[both].astype(str), domain[both].astype(str))
    assert left.get_title() == f"domain\nARI = {ari:.2f}"
    assert 0.1 < ari < 0.95


def test_the_p_value_is_that_of_this_comparison(section) -> None:
    section.obs["domain"] = pd.Categorical(np.roll(REGION, 3))
    ari = adjusted_rand_score(REGION, np.roll(REGION, 3))
    section.uns["domain"] = {"ari": ari, "ari_pval": 0.0123, "label_key": "region"}
    title = f"domain\nARI = {ari:.2f}"
    assert pl.domains(section, "domain", label_key="region")[0].get_title() == f"{title}, p = 0.012"
    section.uns["domain"]["optimistic"] = True
    assert pl.domains(section, "domain", label_key="region")[0].get_title() == f"{title}, p = 0.012 (best of a scan)"
    record = section.uns["domain"]
    for other in ({"ari": ari / 2}, {"label_key": "grade"}):  # of several sections; of other labels, as close
        section.uns["domain"] = record | other
        assert pl.domains(section, "domain", label_key="region")[0].get_title() == title


def test_more_domains_than_colours_is_said(section, warned) -> None:
    section.obs["domain"] = [f"{i}" for i in range(30)]
    pl.domains(section, "domain")
    assert "30 domains to tell apart and 24 colours" in warned.text
    assert len(set(COLOURS)) == 24


@pytest.mark.parametrize("shape", [(1, 1), (1, 0.15), (0.15, 1)])
@pytest.mark.parametrize("ends", ["", " invasive ductal carcinoma, and more to say about it than fits"])
def test_the_legend_of_any_section_is_in_the_figure_and_leaves_the_panel_its_size(
    section, shape, ends, within_figure
) -> None:
    xy = section.obsm["spatial"]
    section.obsm["spatial"] = xy * shape
    section.obs["domain"] = pd.Categorical([f"{i % 11}{ends}" for i in range(30)])
    (ax,) = pl.domains(section, "domain")
    within_figure(ax.figure)
    legend, panel = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert not legend.overlaps(panel.shrunk(0.98, 0.98))
    narrower, wider = sorted(panel.size / ax.figure.dpi)
    assert narrower > 1.2  # inches
    assert wider > 3.2
    names = [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]
    assert sorted(names) == sorted(section.obs["domain"].cat.categories)


def test_colours_of_the_user_are_respected_and_others_matched_to_them(section) -> None:
    section.uns["region_colors"] = np.array(["#111111", "red", "#333333"])  # fat, stroma, tumour
    domain, region = pl.domains(section, "domain", label_key="region")
    assert legend_of(region) == {"fat": "#111111", "stroma": "#ff0000", "tumour": "#333333"}
    assert colours_of(domain) == colours_of(region)
    assert list(section.uns["region_colors"]) == ["#111111", "red", "#333333"]
    # and where the labels have none, they are matched to the domains'
    del section.uns["region_colors"]
    section.uns["domain_colors"] = ["#aa0000", "#00aa00", "#0000aa"]
    domain, region = pl.domains(section, "domain", label_key="region")
    assert legend_of(domain) == {"0": "#aa0000", "1": "#00aa00", "2": "#0000aa"}
    assert colours_of(domain) == colours_of(region)


def test_colours_are_kept_where_scanpy_finds_them(section, tmp_path) -> None:
    import anndata as ad
    import scanpy as sc

    section.obs["region"] = section.obs["region"].cat.add_categories(["necrosis", "undetermined"])
    section.obs.loc[section.obs_names[:3], "region"] = "undetermined"
    drawn = pl.domains(section, "domain", label_key="region")
    for ax, key in zip(drawn, ["domain", "region"], strict=True):
        kept = dict(zip(section.obs[key].cat.categories, section.uns[f"{key}_colors"], strict=True))
        shown = legend_of(ax)
        assert {name: kept[name] for name in shown if name != "none"} == {k: v for k, v in shown.items() if k != "none"}
    assert kept["undetermined"] == GREY
    assert len(set(kept.values())) == 5
    section.write(tmp_path / "section.h5ad")
    again = ad.read_h5ad(tmp_path / "section.h5ad")
    of_file = pl.domains(again, "domain", label_key="region")
    assert [legend_of(ax) for ax in of_file] == [legend_of(ax) for ax in drawn]
    scatter = sc.pl.embedding(again, "spatial", color="domain", show=False, legend_loc=None).collections[0]
    by_name = dict(zip(again.obs["domain"].cat.categories, again.uns["domain_colors"], strict=True))
    assert {to_hex(colour) for colour in scatter.get_facecolor()} == set(by_name.values())


def test_colours_that_do_not_serve_are_replaced_or_left_alone_with_a_word(section, warned) -> None:
    section.uns["domain_colors"] = ["#aa0000"]
    (ax,) = pl.domains(section, "domain")
    assert "uns['domain_colors'] holds 1 colours, and obs['domain'] 3 categories" in warned.text
    assert list(legend_of(ax).values()) == section.uns["domain_colors"] == [shade.lower() for shade in COLOURS[:3]]
    section.uns["domain_colors"] = ["#aa0000", "no colour", "#00aa00"]
    (ax,) = pl.domains(section, "domain")
    assert "uns['domain_colors'] holds 'no colour', which is no colour to Matplotlib" in warned.text
    assert list(legend_of(ax).values()) == [shade.lower() for shade in COLOURS[:3]]
    assert section.uns["domain_colors"][1] == "no colour"


def test_nothing_is_kept_of_a_view_of_text_or_when_the_call_fails(section) -> None:
    view = section[:20]
    pl.domains(view, "domain")
    assert view.is_view
    section.obs["text"] = REGION
    pl.domains(section, "text")
    with pytest.raises(ValueError, match="ax has 1 Axes"):
        pl.domains(section, ["domain", "region"], ax=plt.figure().add_subplot())
    assert not [name for name in section.uns if name.endswith("_colors")]


def test_several_sections_are_rows_in_common_colours() -> None:
    import anndata as ad

    both = ad.concat([make_adata("A"), make_adata("B")], uns_merge="unique")
    both.obs["slide"] = pd.Categorical(["A"] * 30 + ["B"] * 30)
    both.obs["domain"] = pd.Categorical([*np.repeat(["0", "1"], 15), *np.repeat(["1", "2"], 15)])
    both.obs["region"] = pd.Categorical([*np.repeat(["x", "y"], 15), *np.repeat(["y", "x"], 15)])
    axes = pl.domains(both, "domain", label_key="region", library_key="slide")
    assert [ax.get_title().split("\n")[0] for ax in axes] == ["A: domain", "A: region", "B: domain", "B: region"]
    assert axes[0].get_title().endswith("ARI = 1.00")
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    first, _, second, _ = (legend_of(ax) for ax in axes)
    assert first["1"] == second["1"]
    assert set(second) == {"1", "2"}
    assert [dict(zip("012", both.uns["domain_colors"], strict=True))[name] for name in both.obs["domain"][30:]] == (
        colours_of(axes[2])
    )
    with pytest.raises(ValueError, match="2 objects, whose domains are not the same ones"):
        pl.domains([both[:30].copy(), both[30:].copy()], "domain", library_key="slide")
    with pytest.raises(TypeError, match="keys is of type set: pass a column of obs"):
        pl.domains(both, {"domain"}, library_key="slide")


def test_long_names_and_many_domains_fit(section, within_figure) -> None:
    section.obs["domain"] = [f"{i % 20}" for i in range(30)]
    section.obs["region"] = pd.Categorical([f"an invasive carcinoma of type {name}" for name in REGION])
    section.obs["wordy"] = pd.Categorical([f"{name} " + "with some more to say about it, " * 2 for name in REGION])
    within_figure(pl.domains(section, ["domain", "wordy"], label_key="region")[0].figure)


def test_spatialdata_gives_the_same_panels(section, tmp_path) -> None:
    from PIL import Image

    entry = section.uns["spatial"]["A"]
    path = tmp_path / "image.png"
    Image.fromarray(entry["images"]["full"]).save(path)
    entry["metadata"]["source_image_path"] = str(path)
    entry["scalefactors"]["spot_diameter_fullres"] = 10.0
    expected = pl.domains(section, "domain", label_key="region")
    found = pl.domains(as_spatialdata(section), "domain", label_key="region")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.get_title() == theirs.get_title()
        assert sorted(zip(*at(mine), strict=True)) == sorted(zip(*at(theirs), strict=True))


def at(ax) -> tuple[list, list]:
    (spots,) = ax.collections
    return [tuple(xy) for xy in np.asarray(spots.get_offsets()).round(4)], colours_of(ax)


def test_given_axes_and_bad_input(section) -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.domains(section, "domain", label_key="region", ax=axes) == list(axes)
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="ax has 2 Axes, but 1 are needed: domain"):
        pl.domains(section, "domain", ax=axes)
    with pytest.raises(KeyError, match="obs has no column 'hggep_domain'; columns: region, domain"):
        pl.domains(section)
    with pytest.raises(KeyError, match="obs has no column 'cluster'"):
        pl.domains(section, "domain", label_key="cluster")
    with pytest.raises(TypeError, match=r"label_key=.* must be a name"):
        pl.domains(section, "domain", label_key=["cluster"])
    with pytest.raises(ValueError, match="keys is empty"):
        pl.domains(section, [])
    with pytest.raises(TypeError, match="AnnData"):
        pl.domains(3, "domain")
