import random
from contextlib import nullcontext
from threading import Event, Thread

import numpy as np
import pytest
import torch

from helpers import WAIT
from hggep_sc.runtime.random_state import own_random_state


def drawn():
    """From every random state of the process."""
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_callers_state_is_as_it_was(error):
    seeded(5)
    expected = drawn()
    seeded(5)
    ends = nullcontext() if error is None else pytest.raises(error)
    with ends, own_random_state(1), own_random_state(2):
        drawn()
        seeded(3)
        if error is not None:
            raise error
    assert drawn() == expected


def test_seeded():
    with own_random_state(4):
        found = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(found, torch.rand(3))


def test_threads_take_turns():
    """The second waits, and draws what it would alone."""
    inside, go_on, found = Event(), Event(), []

    def first():
        with own_random_state(0):
            found.append(torch.rand(2))
            inside.set()
            assert go_on.wait(WAIT)
            found.append(torch.rand(2))

    def second():
        assert inside.wait(WAIT)
        waits.set()
        with own_random_state(0):
            found.append(torch.rand(4))

    waits = Event()
    before = torch.get_rng_state()
    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    assert waits.wait(WAIT)
    assert len(found) == 1
    go_on.set()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat(found[:2]), found[2])
    assert torch.equal(before, torch.get_rng_state())
