"""Loss terms. All take spots in rows and genes in columns; a size factor scales a spot's mean."""

import torch
from torch import Tensor

from .interface import CountParameters

_TINY = 1e-8  # floor of means, dispersions and probabilities, below which logarithms and gradients blow up


def nb_nll(counts: Tensor, mean: Tensor, dispersion: Tensor, size_factors: Tensor) -> Tensor:
    """Negative log-likelihood of counts under the negative binomial, mean over all entries.

    Computed in float64 (float32 on devices that lack it): differences of log-gamma of large arguments lose
    their digits otherwise. Gradients are finite for parameters at their limits too.

    Parameters
    ----------
    counts
        (N, G) raw counts.
    mean, dispersion
        (N, G), positive; variance = mean + mean^2 / dispersion.
    size_factors
        (N,), non-negative; multiplies the mean.

    Returns
    -------
    Scalar, in the parameters' dtype and at least float32.
    """
    nll = _negative_binomial(*_precise(counts, mean, dispersion, size_factors))
    return nll.mean().to(_result_dtype(mean))


def zinb_nll(counts: Tensor, mean: Tensor, dispersion: Tensor, dropout: Tensor, size_factors: Tensor) -> Tensor:
    """Negative log-likelihood under the zero-inflated negative binomial, mean over all entries.

    A zero comes from the `dropout` with its probability or from the negative binomial; see `nb_nll`, which
    tells of precision and shapes.

    Parameters
    ----------
    counts
        (N, G) raw counts.
    mean, dispersion
        (N, G), positive; variance of the negative binomial = mean + mean^2 / dispersion.
    dropout
        (N, G), probability of an excess zero, 0..1.
    size_factors
        (N,), non-negative; multiplies the mean.

    Returns
    -------
    Scalar, in the parameters' dtype and at least float32.
    """
    x, mu, r, s, pi = _precise(counts, mean, dispersion, size_factors, dropout)
    pi = pi.clamp(_TINY, 1 - 1e-7)  # 1e-7: float32 tells no probability nearer to 1
    nb = _negative_binomial(x, mu, r, s)
    excess, ordinary = pi.log(), torch.log1p(-pi) - nb
    nll = -torch.where(x == 0, torch.logaddexp(excess, ordinary), ordinary)
    return nll.mean().to(_result_dtype(mean))


def _negative_binomial(x: Tensor, mean: Tensor, dispersion: Tensor, size_factors: Tensor) -> Tensor:
    mu = (mean * size_factors.unsqueeze(-1)).clamp_min(_TINY)
    r = dispersion.clamp_min(_TINY)
    log_choices = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return r * torch.log1p(mu / r) + x * torch.log1p(r / mu) - log_choices


def _precise(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return [tensor.to(dtype) for tensor in tensors]


def _result_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def zinb_parameters(mean: Tensor, dispersion: Tensor, dropout: Tensor) -> CountParameters:
    """Bring what linear layers give, each (N, G), into the bounds of the published codes."""
    return CountParameters(
        mean.float().exp().clamp(1e-5, 1e6),
        torch.nn.functional.softplus(dispersion.float()).clamp(1e-4, 1e4),
        torch.sigmoid(dropout.float()),
    )


def pearson_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - mean over genes of Pearson's correlation across spots.

    A gene whose target is constant is left out of the mean; one whose prediction is constant counts as
    correlation 0. Without any gene to judge the loss is 0. Gradients are finite throughout.

    Parameters
    ----------
    prediction, target
        (N, G).

    Returns
    -------
    Scalar, float32.
    """
    p, t = prediction.float(), target.float()
    if len(p) < 2:
        return p.sum() * 0.0  # keeps the graph
    varies = t.amax(0) > t.amin(0)
    p = p - p.mean(0)
    t = torch.where(varies, t - t.mean(0), 0.0)
    t = t * t.square().mean(0).clamp_min(torch.finfo(t.dtype).tiny).rsqrt()
    correlation = (p * t).mean(0) * (p.square().mean(0) + _TINY).rsqrt()  # 0 where the target is constant
    n = varies.sum()
    return (n - correlation.sum()) / n.clamp_min(1)


def distillation(prediction: Tensor, views: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference between a prediction and the weighted mean of predictions from augmented views.

    Both sides carry gradient, as in the published code.

    Parameters
    ----------
    prediction
        (N, G), from the patches as they are.
    views
        (V, N, G), from V augmented views.
    scores
        (V, N, 1); their softmax over the views gives the weights.

    Returns
    -------
    Scalar.
    """
    consensus = (scores.softmax(0) * views).sum(0)
    return torch.nn.functional.mse_loss(consensus, prediction)
