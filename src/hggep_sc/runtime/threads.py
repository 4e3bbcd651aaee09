"""Threads that are at work on what comes next."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from .messages import warning_here

Item = TypeVar("Item")
Result = TypeVar("Result")


def compute_alone() -> None:
    """Give OpenMP one thread in this one; others keep theirs, unlike with `torch.set_num_threads`."""
    torch.get_num_threads()  # torch settles its number at the first question, which must not be later
    threadpool_limits(1, user_api="openmp")


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    n_threads: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Yield what threads make of each item, in order, while they are at work on the next; closed, they have ended."""
    work = warning_here(work)
    with ThreadPoolExecutor(n_threads, "hggep_sc", initializer) as pool:
        started: deque[Future[Result]] = deque()
        for item in items:
            started.append(pool.submit(work, item))
            if len(started) > n_threads:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
