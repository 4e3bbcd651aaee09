import numpy as np
import pytest
import scipy.stats
import torch

from hggep_sc.nn.losses import distillation, nb_nll, pearson_loss, zinb_nll

COUNTS = [0, 1, 3, 40, 2000, 30000]
MEANS = [1e-5, 0.3, 7.0, 900.0, 1e6]
DISPERSIONS = [1e-4, 0.2, 5.0, 1e4]
SIZES = [0.01, 1.0, 8.0]


def grid():
    x, mu, r, s = (a.ravel() for a in np.meshgrid(COUNTS, MEANS, DISPERSIONS, SIZES, indexing="ij"))
    return x.astype(float), mu, r, s


def expected_nb(x, mu, r, s):
    # scipy's p is the probability of ending: r / (r + mean)
    return -scipy.stats.nbinom.logpmf(x, r, r / (r + mu * s))


def one_by_one(function, x, *parameters, size_factors, dtype):
    """Each entry's term: the functions return means."""
    tensors = [torch.as_tensor(a, dtype=dtype).view(-1, 1, 1) for a in (x, *parameters)]
    sizes = torch.as_tensor(size_factors, dtype=dtype).view(-1, 1)
    terms = [function(*entry, size_factors=size) for *entry, size in zip(*tensors, sizes, strict=True)]
    return torch.stack(terms).double().numpy()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_nb_against_scipy(dtype, rtol):
    x, mu, r, s = grid()
    found = one_by_one(nb_nll, x, mu, r, size_factors=s, dtype=dtype)
    np.testing.assert_allclose(found, expected_nb(x, mu, r, s), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("pi", [1e-6, 0.3, 0.9])
def test_zinb_against_scipy(pi):
    x, mu, r, s = grid()
    found = one_by_one(zinb_nll, x, mu, r, np.full_like(mu, pi), size_factors=s, dtype=torch.float64)
    nb = -expected_nb(x, mu, r, s)
    expected = np.where(x == 0, -np.log(pi + (1 - pi) * np.exp(nb)), -np.log1p(-pi) - nb)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_mean_over_entries_with_one_size_factor_per_spot():
    rng = np.random.default_rng(0)
    x, mu, r = rng.poisson(2, (3, 4)), rng.uniform(0.5, 3, (3, 4)), rng.uniform(0.5, 3, (3, 4))
    s = np.array([0.5, 1.0, 2.0])
    found = nb_nll(*(torch.as_tensor(a) for a in (x, mu, r, s)))
    assert found.item() == pytest.approx(expected_nb(x, mu, r, s[:, None]).mean())


def test_published_values(shared):
    stored = np.load(shared / "reference" / "parity_c2_32spots.npz")
    counts, mean, disp, pi, sizes = (
        torch.from_numpy(stored[name]) for name in ("counts", "zinb_mean", "zinb_disp", "zinb_pi", "size_factors")
    )
    assert zinb_nll(counts, mean, disp, pi, sizes).item() == pytest.approx(stored["zinb_loss"].item(), rel=1e-6)

    # The stored `nb_loss` takes the mean for r and pi for the logit of success: its mean is r exp(pi). It is
    # summed over genes, averaged over spots and leaves out x!
    likelihood = nb_nll(counts, mean * pi.exp(), mean, torch.ones(len(counts)))
    factorial = torch.lgamma(counts.double() + 1).mean()
    found = (likelihood - factorial) * counts.shape[1]
    assert found.item() == pytest.approx(stored["nb_loss"].item(), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("pi", [0.0, 0.5, 1.0])
def test_gradients_at_the_limits_are_finite(size, pi):
    grid = np.meshgrid([0.0] if size == 0 else [0.0, 1.0, 1e5], [0.0, 1e-5, 1e6], [0.0, 1e-4, 1e4])
    x, mean, dispersion = (torch.tensor(a.reshape(1, -1), dtype=torch.float32) for a in grid)
    parameters = [mean, dispersion, torch.full_like(mean, pi)]
    for p in parameters:
        p.requires_grad_()
    for loss in (
        zinb_nll(x, *parameters, torch.tensor([size])),
        nb_nll(x, *parameters[:2], torch.tensor([size])),
    ):
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        for gradient in torch.autograd.grad(loss, parameters, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_precise_under_autocast():
    x, mu, r, s = (torch.tensor(a, dtype=torch.float32) for a in grid())
    pi = torch.full_like(mu, 0.3)
    arguments = [a.unsqueeze(1) for a in (x, mu, r, pi)]
    plain = zinb_nll(*arguments, s)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert zinb_nll(*arguments, s).item() == plain.item()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, 6, generator=generator)
    prediction = target * 0.7 + torch.randn(40, 6, generator=generator) * 3 + 5
    return prediction, target


def mean_pcc(prediction, target):
    return np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(prediction.T.numpy(), target.T.numpy(), strict=True)])


def test_pearson_against_numpy(pair):
    assert pearson_loss(*pair).item() == pytest.approx(1 - mean_pcc(*pair), abs=1e-5)
    prediction, target = pair
    assert pearson_loss(prediction * 1e-2 - 9, target * 50 + 3).item() == pytest.approx(1 - mean_pcc(*pair), abs=1e-3)


def test_pearson_constant_genes(pair):
    prediction, target = pair
    target[:, 0] = 2.3  # left out
    prediction[:, 1] = 0  # counts as correlation 0
    prediction.requires_grad_()
    loss = pearson_loss(prediction, target)
    loss.backward()
    expected = 1 - 4 / 5 * mean_pcc(prediction.detach()[:, 2:], target[:, 2:])
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[:, 0] == 0).all()


@pytest.mark.parametrize("n_spots", [0, 1, 5])
def test_pearson_without_anything_to_judge(n_spots):
    prediction = torch.rand(n_spots, 3, requires_grad=True)
    loss = pearson_loss(prediction, torch.ones(n_spots, 3))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_distillation_weighs_views_spot_by_spot():
    prediction = torch.tensor([[1.0], [2.0]], requires_grad=True)
    views = torch.tensor([[[3.0], [0.0]], [[5.0], [8.0]]], requires_grad=True)
    scores = torch.tensor([[[0.0], [np.log(3.0)]], [[0.0], [0.0]]], requires_grad=True)
    loss = distillation(prediction, views, scores)
    # spot 1: (3 + 5) / 2 = 4 against 1; spot 2: 3/4 * 0 + 1/4 * 8 = 2 against 2
    assert loss.item() == pytest.approx((9 + 0) / 2)
    loss.backward()
    assert prediction.grad[0].item() == pytest.approx(-3)
    assert views.grad[:, 0].flatten().tolist() == pytest.approx([1.5, 1.5])
