import numpy as np
import pytest
import torch

from hggep_sc.prediction.finite import require_finite_model, require_finite_prediction

WHOLE = {"weights": torch.ones(3, 2), "steps": torch.tensor(3), "mask": torch.tensor([True])}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_is_refused_by_the_entry(value):
    require_finite_model(WHOLE)
    with pytest.raises(ValueError, match=r"NaN or infinite \(entry 'bias'\)"):
        require_finite_model({**WHOLE, "bias": torch.tensor([0.0, value])})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prediction_is_refused_by_the_spots(value):
    expression, latent = np.full((4, 3), 3e38, dtype=np.float32), np.zeros((4, 2), dtype=np.float32)
    require_finite_prediction("A", expression, latent)
    latent[1, 1] = latent[3, 0] = value
    with pytest.raises(ValueError, match="section 'A': what the model predicts at 2 of 4 spots is NaN or infinite"):
        require_finite_prediction("A", expression, latent)
    latent[3] = np.inf, -np.inf
    with pytest.raises(ValueError, match="at 2 of 4 spots"):
        require_finite_prediction("A", expression, latent)
