import numpy as np
import pytest
import torch
from scipy.stats import kstest
from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

from hggep_sc.training.augmentation import (
    STAINS,
    dihedral,
    random_dihedral,
    random_shift,
    stain_jitter,
)


def patches_of(n=8, fields=2, size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, fields, 3, size, size), generator=generator, dtype=torch.uint8)


def view(image, turns, flip):
    """NumPy's own, on (3, S, S)."""
    image = np.moveaxis(image, 0, -1)
    return np.moveaxis(np.rot90(np.fliplr(image) if flip else image, turns), -1, 0)


def test_all_eight_views_against_numpy():
    patches = patches_of()
    before = patches.clone()
    turns, flips = torch.arange(8) % 4, torch.arange(8) >= 4
    found = dihedral(patches, turns, flips)
    for i in range(8):
        for field in range(2):
            expected = view(patches[i, field].numpy(), i % 4, i >= 4)
            np.testing.assert_array_equal(found[i, field].numpy(), expected)
    assert found.dtype == torch.uint8
    assert torch.equal(patches, before)  # the caller's patches stay as they are


def test_eight_views_differ():
    patches = patches_of(n=1).expand(8, -1, -1, -1, -1)
    found = dihedral(patches, torch.arange(8) % 4, torch.arange(8) >= 4)
    assert len({view.numpy().tobytes() for view in found}) == 8


def test_fields_of_a_spot_are_turned_alike():
    patches = patches_of(n=200, fields=1).expand(-1, 3, -1, -1, -1)
    found = random_dihedral(patches, torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert not torch.equal(found, patches)


def test_all_views_are_drawn_evenly():
    patches = patches_of(n=1, fields=1).expand(4000, -1, -1, -1, -1)
    views = random_dihedral(patches, torch.Generator().manual_seed(0)).flatten(1).numpy()
    counts = np.unique(views, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 420  # 500 expected, standard deviation 21


def features_of(n, fields=2, d=3):
    """Every number another."""
    return torch.arange(n * fields * d, dtype=torch.float32).view(n, fields, d)


@pytest.mark.parametrize(
    ("augment", "given"),
    [
        pytest.param(random_dihedral, patches_of(n=30), id="dihedral"),
        pytest.param(lambda patches, generator: stain_jitter(patches, 0.2, generator), patches_of(n=30), id="stain"),
        pytest.param(
            lambda features, generator: random_shift(features, torch.ones(2, 3), generator),
            features_of(30),
            id="shift",
        ),
    ],
)
def test_the_generator_decides(augment, given):
    state, before = torch.random.get_rng_state(), given.clone()
    first = augment(given, torch.Generator().manual_seed(5))
    assert torch.equal(augment(given, torch.Generator().manual_seed(5)), first)
    assert not torch.equal(augment(given, torch.Generator().manual_seed(6)), first)
    assert torch.equal(given, before)
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's own state is left alone


def test_jitter_of_0_is_the_identity():
    patches = patches_of()
    found = stain_jitter(patches, 0.0, torch.Generator())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, patches.float(), atol=0.01, rtol=0)


def test_white_stays_white():
    white = torch.full((50, 1, 3, 4, 4), 255, dtype=torch.uint8)
    found = stain_jitter(white, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, white.float())


def test_values_stay_pixels():
    found = stain_jitter(patches_of(n=50), 1.0, torch.Generator().manual_seed(0))
    assert found.min() >= 0
    assert found.max() <= 255
    assert not torch.equal(found.round(), patches_of(n=50).float())


def stained(amounts):
    """One colour, by scikit-image's stain matrix (Ruifrok & Johnston): a patch of its pixels, not rounded."""
    rgb = combine_stains(np.array(amounts, dtype=float).reshape(1, 1, 3), rgb_from_hed)
    return torch.from_numpy(255 * np.moveaxis(rgb, -1, 0)).float().expand(1, 1, 3, 2, 2)


def amounts_of(patches):
    rgb = patches[:, 0, :, 0, 0].numpy().astype(float) / 255
    return separate_stains(rgb[:, None], hed_from_rgb)[:, 0]


def density(patches):
    return -np.log((patches[:, 0, :, 0, 0].numpy().astype(float) + 1) / 256)


def test_stains_are_ruifroks():
    unit = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
    cosine = (STAINS.numpy() * unit).sum(1)
    assert (cosine > np.cos(np.radians(1))).all()


@pytest.mark.parametrize("stain", [0, 1])
def test_a_pure_stain_moves_along_its_own_density(stain):
    amount = [0.0, 0.0, 0.0]
    amount[stain] = 0.1
    patch = stained(amount)
    found = stain_jitter(patch.expand(300, -1, -1, -1, -1), 0.2, torch.Generator().manual_seed(0))
    before, after = density(patch)[0], density(found)
    cosine = after @ before / np.linalg.norm(after, axis=1) / np.linalg.norm(before)
    assert cosine.min() > np.cos(np.radians(1.5))
    # its amount is scaled by exp(N(0, 0.2))
    change = np.log(np.linalg.norm(after, axis=1) / np.linalg.norm(before))
    assert change.std() == pytest.approx(0.2, abs=0.03)
    assert abs(change.mean()) < 0.04
    others = np.delete(amounts_of(found), stain, axis=1)
    assert np.abs(others).max() < 0.05 * amounts_of(found)[:, stain].mean()


def test_each_stain_by_itself():
    patch = stained([0.08, 0.05, 0.0])
    found = stain_jitter(patch.expand(300, -1, -1, -1, -1), 0.2, torch.Generator().manual_seed(0))
    change = np.log(amounts_of(found)[:, :2] / amounts_of(patch)[:, :2])
    np.testing.assert_allclose(change.std(0), 0.2, atol=0.04)
    assert abs(np.corrcoef(change.T)[0, 1]) < 0.2


def test_fields_and_pixels_of_a_spot_are_stained_alike():
    patch = stained([0.1, 0.05, 0.0]).expand(20, 3, -1, -1, -1)
    found = stain_jitter(patch, 0.2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, found[:, :1, :, :1, :1].expand_as(found))
    assert found[:, 0, :, 0, 0].std(0).min() > 1  # and spots differ


# --- features


def test_all_spots_are_shifted_alike():
    features = features_of(20)
    shift = random_shift(features, torch.ones(2, 3), torch.Generator().manual_seed(0)) - features
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-4, rtol=0)
    assert len(shift[0].unique()) == 6  # and each feature of each field by itself


def test_shifts_are_normal_with_the_scale_given():
    scale = torch.tensor([[0.5, 2.0], [0.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    shifts = torch.cat([random_shift(torch.zeros(1, 2, 2), scale, generator) for _ in range(2000)])
    torch.testing.assert_close(shifts.std(0), scale, atol=0, rtol=0.06)  # standard error 0.016 of it
    assert (shifts.mean(0).abs() <= 0.1 * scale).all()
    assert kstest((shifts[:, :, 1] / scale[:, 1]).flatten().numpy(), "norm").pvalue > 0.01
