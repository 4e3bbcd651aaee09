"""Synthetic sections: reproducible, in the layout of real ones, and readable from the image alone."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from hggep_sc import datasets, settings

N_SPOTS = 90


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(settings, "cache_dir", tmp_path_factory.mktemp("cache"))
    yield settings.cache_dir
    patch.undo()


@pytest.fixture(scope="module")
def sections(cache):
    return datasets.synthetic(3, N_SPOTS, seed=1)


def _image(section):
    from PIL import Image

    (library,) = section.uns["spatial"].values()
    with Image.open(library["metadata"]["source_image_path"]) as image:
        return np.asarray(image)


def _features(section, side=112):
    """Colour and texture statistics of each spot's patch, standardised within the section."""
    half = side // 2
    pixels = np.pad(_image(section).astype(np.float32), ((half, half), (half, half), (0, 0)), mode="edge")
    rows = []
    for x, y in section.obsm["spatial"].astype(int):
        patch = pixels[y : y + side, x : x + side]
        gray = patch.mean(2)
        density = -np.log((patch + 1) / 256)
        steps = [np.abs(np.diff(gray, axis=axis)).mean() for axis in (0, 1)]
        quantiles = np.percentile(gray, [5, 15, 30, 50, 70, 85, 95])
        rows.append([*density.mean((0, 1)), *density.std((0, 1)), *quantiles, *steps, (gray < 110).mean()])
    features = np.array(rows)
    return (features - features.mean(0)) / features.std(0)


def _expression(section):
    counts = section.X.toarray().astype(float)
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


def _mean_pcc(train, test, rng=None):
    """Ridge from patch statistics; `rng` pairs patches and counts at random in training."""
    features = [_features(section) for section in train]
    if rng is not None:
        features = [rng.permutation(part) for part in features]
    x = np.vstack(features)
    y = np.vstack([_expression(section) - _expression(section).mean(0) for section in train])
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    predicted, observed = _features(test) @ weights, _expression(test)
    predicted, observed = (part - part.mean(0) for part in (predicted, observed))
    norm = np.linalg.norm(predicted, axis=0) * np.linalg.norm(observed, axis=0)
    pcc = (predicted * observed).sum(0) / np.where(norm > 0, norm, 1)
    noise = test.var_names.str.startswith("NOI")
    return pcc[~noise].mean(), pcc[noise].mean()


def test_layout(sections, cache):
    assert list(sections) == ["S1", "S2", "S3"]
    for name, section in sections.items():
        assert section.shape == (N_SPOTS, 200)
        assert section.X.format == "csr"
        assert section.X.dtype == np.float32
        assert (section.X.data == np.rint(section.X.data)).all()
        assert section.X.min() == 0
        assert section.obs_names.is_unique
        assert section.var_names.is_unique
        assert (section.obs["in_tissue"] == 1).all()
        library = section.uns["spatial"][name]
        source = Path(library["metadata"]["source_image_path"])
        assert source.is_absolute()
        assert source.is_relative_to(cache / "synthetic")
        assert library["metadata"]["technology"] == "synthetic"
        assert library["scalefactors"]["microns_per_pixel"] == 1
        image = _image(section)
        assert image.shape[2] == 3
        np.testing.assert_array_equal(library["images"]["hires"], image)
        x, y = section.obsm["spatial"].T
        assert x.min() > 0
        assert y.min() > 0
        assert x.max() < image.shape[1]
        assert y.max() < image.shape[0]


def test_spots_are_hexagonal_100_um_apart(sections):
    for section in sections.values():
        distance = cKDTree(section.obsm["spatial"]).query(section.obsm["spatial"], k=2)[0][:, 1]
        np.testing.assert_allclose(distance, 100, rtol=1e-6)
        column, row = section.obs["array_col"].to_numpy(), section.obs["array_row"].to_numpy()
        assert ((column + row) % 2 == 0).all()
        step = np.column_stack([column * 50, row * 50 * np.sqrt(3)]) - section.obsm["spatial"]
        np.testing.assert_allclose(step, np.broadcast_to(step[0], step.shape), atol=1e-6)
    positions = [set(map(tuple, section.obsm["spatial"])) for section in sections.values()]
    assert not positions[0] & positions[1]


def test_every_region_is_there_and_sections_differ(sections):
    for section in sections.values():
        assert section.obs["region"].cat.categories.tolist() == ["stroma", "gland", "tumour", "fat", "immune"]
        assert section.obs["region"].nunique() >= 4
    counts = [section.X.sum() for section in sections.values()]
    assert len(set(counts)) == 3


def test_regions_look_like_themselves(sections):
    """Fat is bright, tumour and immune regions are dark and blue, stroma is pink: seen in the pixels."""
    colour = {}
    for section in sections.values():
        image = _image(section).astype(float)
        for region, (x, y) in zip(section.obs["region"], section.obsm["spatial"].astype(int), strict=True):
            colour.setdefault(region, []).append(image[max(y - 40, 0) : y + 40, max(x - 40, 0) : x + 40].mean((0, 1)))
    mean = {region: np.mean(patches, axis=0) for region, patches in colour.items()}
    assert mean["fat"].mean() > max(mean[region].mean() for region in ("stroma", "tumour", "immune", "gland"))
    redness = {region: rgb[0] - rgb[2] for region, rgb in mean.items()}
    assert redness["stroma"] > max(redness["tumour"], redness["immune"])
    assert mean["tumour"][0] < mean["stroma"][0]


def test_the_same_seed_gives_the_same_section_whatever_their_number(sections, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "cache_dir", tmp_path)  # drawn anew
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = datasets.synthetic(1, N_SPOTS, seed=1)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert list(again) == ["S1"]
    assert (again["S1"].X != sections["S1"].X).nnz == 0
    np.testing.assert_array_equal(again["S1"].obsm["spatial"], sections["S1"].obsm["spatial"])
    np.testing.assert_array_equal(_image(again["S1"]), _image(sections["S1"]))


def test_images_are_drawn_once(sections, cache):
    drawn = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    again = datasets.synthetic(2, N_SPOTS, seed=1)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == drawn
    assert (again["S2"].X != sections["S2"].X).nnz == 0


def test_another_seed_gives_other_tissue(sections, cache):
    other = datasets.synthetic(1, 20, seed=2, n_genes=40)["S1"]
    assert other.shape == (20, 40)
    assert {name[:3] for name in other.var_names} == {
        "TUM",
        "STR",
        "GLA",
        "FAT",
        "IMM",
        "CYC",
        "INV",
        "LUM",
        "NOI",
    }
    same_size = datasets.synthetic(1, 20, seed=1, n_genes=40)["S1"]
    assert _image(other).shape == _image(same_size).shape
    assert np.abs(_image(other).astype(int) - _image(same_size)).mean() > 5


def test_expression_follows_the_drawing(sections):
    """Genes of a programme rise with what names them, told from pixels alone."""
    for section in sections.values():
        image = _image(section).astype(float)
        bright = np.array(
            [
                (image[max(y - 40, 0) : y + 40, max(x - 40, 0) : x + 40].min(2) > 220).mean()
                for x, y in section.obsm["spatial"].astype(int)
            ]
        )
        fat = np.log1p(section[:, section.var_names.str.startswith("FAT")].X.toarray()).mean(1)
        nuclei = np.log1p(section[:, section.var_names.str.startswith("CYC")].X.toarray()).mean(1)
        assert np.corrcoef(bright, fat)[0, 1] > 0.4
        assert np.corrcoef(bright, nuclei)[0, 1] < -0.2


def test_patches_predict_genes_and_shuffled_patches_do_not(sections):
    *train, test = sections.values()
    signal, noise = _mean_pcc(train, test)
    assert signal > 0.3
    assert abs(noise) < 0.1
    shuffled = np.mean([_mean_pcc(train, test, np.random.default_rng(seed))[0] for seed in range(5)])
    assert abs(shuffled) < 0.1


def test_a_single_spot_and_writing_to_disk(cache, tmp_path):
    import anndata

    section = datasets.synthetic(1, 1, n_genes=9)["S1"]
    assert section.shape == (1, 9)
    section.write_h5ad(tmp_path / "section.h5ad")
    again = anndata.read_h5ad(tmp_path / "section.h5ad")
    assert again.uns["spatial"]["S1"]["metadata"] == section.uns["spatial"]["S1"]["metadata"]
    assert again.obs["region"].tolist() == section.obs["region"].tolist()


@pytest.mark.parametrize("wrong", [{"n_sections": 0}, {"n_spots": 0}, {"n_genes": 5}])
def test_too_few(wrong, cache):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        datasets.synthetic(**wrong)
