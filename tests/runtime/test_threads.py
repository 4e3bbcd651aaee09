from contextlib import closing
from threading import Barrier, Event, current_thread
from threading import enumerate as enumerate_threads

import pytest
import torch

from helpers import WAIT
from hggep_sc.runtime.threads import ahead, compute_alone


def threads_at_work():
    return [thread for thread in enumerate_threads() if thread.name.startswith("hggep_sc")]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 3, 10])
def test_results_come_in_order_whichever_is_ready_first(n_threads, n):
    """Of each round the first is done last."""
    ready = [Event() for _ in range(n)]

    def work(item):
        if n_threads > 1 and item % n_threads == 0 and item + 1 < n:
            assert ready[item + 1].wait(WAIT)
        ready[item].set()
        return item**2

    assert list(ahead(work, range(n), n_threads)) == [item**2 for item in range(n)]
    assert not threads_at_work()


def test_no_more_are_begun_than_there_are_threads():
    begun = []
    with closing(ahead(begun.append, range(100), 2)) as results:
        next(results)
        assert len(begun) <= 3  # the one that is given out, and those ahead
    assert not threads_at_work()
    assert len(begun) <= 3


def test_an_error_is_raised_where_its_result_was_due():
    results = ahead(lambda item: 1 / item, [2, 1, 0, 4], 3)
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads_at_work()


def test_each_thread_computes_alone_and_others_keep_their_number():
    together, before = Barrier(3), torch.get_num_threads()
    torch.set_num_threads(4)
    try:

        def number(_):
            together.wait(WAIT)  # so that each thread has one
            return current_thread().name, torch.get_num_threads()

        found = list(ahead(number, range(3), 3, compute_alone))
        assert len({name for name, _ in found}) == 3
        assert {number for _, number in found} == {1}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
