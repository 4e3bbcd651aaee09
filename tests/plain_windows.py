"""Averages over windows by a loop over cells: the fast ones agree with these."""

import numpy as np


def summed_by_loop(maps: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Each cell of maps (C, H, W), times the part of it that lies in a window, in cells."""
    total = np.zeros(len(maps))
    for row in range(max(int(top), 0), min(int(np.ceil(bottom)), maps.shape[1])):
        for column in range(max(int(left), 0), min(int(np.ceil(right)), maps.shape[2])):
            across = max(0.0, min(right, column + 1) - max(left, column))
            down = max(0.0, min(bottom, row + 1) - max(top, row))
            total += across * down * maps[:, row, column].astype(float)
    return total


def averaged_by_loop(maps: list[np.ndarray], low: np.ndarray, size: float, side: int) -> np.ndarray:
    """Average maps of a square of `side` px over a window in it, given by its upper left corner and size in px."""
    averages = []
    for of_stage in maps:
        stride = side / of_stage.shape[-1]
        corners = *(low / stride), *((low + size) / stride)
        averages.append(summed_by_loop(of_stage, *corners) * (stride / size) ** 2)
    return np.concatenate(averages)
