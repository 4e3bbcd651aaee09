"""Work handed to an executor, or done here."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def outcomes(
    run: Callable[[Task], Result], tasks: Sequence[Task], executor: Executor | None
) -> Iterator[tuple[Task, Callable[[], Result]]]:
    """Yield tasks as they end, with what gives the result or raises the error.

    An interruption cancels what has not begun.

    Parameters
    ----------
    run
        Does a task; for another process a function of a module.
    tasks
        What is to be done.
    executor
        Any `concurrent.futures.Executor`; None: one after another, here, each when it is asked for.
    """
    if executor is None:
        for task in tasks:
            yield task, partial(run, task)
        return
    futures: dict[Future[Result], Task] = {executor.submit(run, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        for future in futures:
            future.cancel()
