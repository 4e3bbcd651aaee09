"""The random state of the process: the caller's, and shared by its threads."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

_held = RLock()


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seed torch's random state, for one thread at a time, and leave all random state as it was, whatever happens.

    Another thread that wants it waits for the end: torch, and Lightning with it, draw from one state.
    """
    with _held:
        of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        of_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        try:
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            torch.set_rng_state(of_torch)
            torch.cuda.set_rng_state_all(of_cuda)
            if of_mps is not None:
                torch.mps.set_rng_state(of_mps)
