"""Averages of maps over windows: by summed-area tables (Crow, SIGGRAPH 1984), and of the middle of square maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDING = 1e-12  # of the whole sum, below which a window's is what rounding leaves of nothing


def summed_area(maps: Tensor) -> Tensor:
    """Sum maps (C, H, W) over all that is above and left of each corner: (H + 1, W + 1, C), in double precision."""
    table = maps.new_zeros((maps.shape[1] + 1, maps.shape[2] + 1, maps.shape[0]), dtype=torch.double)
    sums = table[1:, 1:]
    sums.copy_(maps.permute(1, 2, 0))  # channels last: sums over either side run along whole rows of memory
    torch.cumsum(sums, 0, out=sums)
    torch.cumsum(sums, 1, out=sums)
    return table


def window_sums(table: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum maps that are constant in each cell over windows.

    The table is read bilinearly at the windows' corners, which is exact for cells that a window cuts.

    Parameters
    ----------
    table
        (H + 1, W + 1, C), of `summed_area`.
    low, high
        (n, 2) corners of the windows, x and y in cells, double precision. What lies outside of the maps counts nothing.

    Returns
    -------
    (n, C), double precision.
    """
    rows, columns = table.shape[:2]
    extent = torch.tensor([columns - 1, rows - 1], dtype=torch.double, device=table.device)
    (left, top), (right, bottom) = (corner.clamp(extent * 0, extent).T for corner in (low, high))
    places, weights = [], []
    for x, y, sign in ((right, bottom, 1), (left, bottom, -1), (right, top, -1), (left, top, 1)):
        column, row = x.floor().clamp(max=columns - 2), y.floor().clamp(max=rows - 2)
        for across, along_x in ((0, 1 - (x - column)), (1, x - column)):
            for down, along_y in ((0, 1 - (y - row)), (1, y - row)):
                places.append((row + down) * columns + column + across)
                weights.append(sign * along_x * along_y)
    at, weighed = torch.stack(places, dim=1).long(), torch.stack(weights, dim=1)
    sums = F.embedding_bag(at, table.flatten(0, 1), per_sample_weights=weighed, mode="sum")
    return sums.masked_fill_(sums.abs() < ROUNDING * table[-1, -1].abs(), 0)


def middle(maps: Tensor, share: float) -> Tensor:
    """Average the middle of square maps (N, C, H, H), a share of their side: (N, C), single precision."""
    side = maps.shape[-1]
    cells = torch.arange(side, dtype=torch.double)
    low, high = (1 - share) / 2 * side, (1 + share) / 2 * side
    covered = (torch.minimum(cells + 1, torch.tensor(high)) - torch.maximum(cells, torch.tensor(low))).clamp(min=0)
    weights = (torch.outer(covered, covered) / (high - low) ** 2).flatten().float().to(maps.device)
    return weights @ maps.permute(0, 2, 3, 1).flatten(1, 2).float()  # no copy, where channels are last
