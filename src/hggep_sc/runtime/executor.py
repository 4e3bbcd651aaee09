"""Work handed to an executor, or done here."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from typing import TypeVar

from .messages import WARNED, Warned, run_silently, warn

Task = TypeVar("Task")
Result = TypeVar("Result")


def outcomes(
    run: Callable[[Task], Result], tasks: Sequence[Task], executor: Executor | None
) -> Iterator[tuple[Task, Callable[[], Result]]]:
    """Yield tasks as they end, with what gives the result or raises the error.

    An interruption cancels what has not begun. What a task warns of elsewhere is said here, when its result is asked
    for, and is an error here where the caller's filters make it one.

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
    futures = {executor.submit(run_silently, run, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], partial(_outcome, future)
    finally:
        for future in futures:
            future.cancel()


def _outcome(future: Future[tuple[Result, Warned]]) -> Result:
    try:
        result, warned = future.result()
    except Exception as error:
        _repeat(vars(error).pop(WARNED, ()))
        raise
    _repeat(warned)
    return result


def _repeat(warned: Warned) -> None:
    for message, category in warned:
        warn(message, category)
