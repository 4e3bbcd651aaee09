"""Which views training holds."""

import pytest

from hggep_sc import Config
from hggep_sc.training.read import views_of_training


@pytest.mark.parametrize(
    ("settings", "n_spots", "turns"),
    [
        ({"epochs": 4}, 100, 4),
        ({"epochs": 3}, 100, 4),  # an epoch takes all spots
        ({"epochs": 30, "epoch_chunks": 32, "chunk_spots": 512}, 122_880, 4),
        ({"epochs": 30, "epoch_chunks": 32, "chunk_spots": 512}, 122_881, 1),  # less often than four times
        ({"epochs": 30, "epoch_chunks": None}, 10**7, 4),
        ({"epochs": 30, "chunk_spots": None}, 10**7, 4),
        ({"epochs": 30, "flips": False}, 100, 1),
    ],
)
def test_turns_are_held_where_training_sees_them(settings, n_spots, turns):
    assert len(views_of_training(Config.from_preset("default", **settings), n_spots)) == turns
