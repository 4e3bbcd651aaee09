"""Cross-validation: every section predicted by a model that never saw it, by several methods and seeds."""

from .folds import Fold, FoldResult, Task, leave_out
from .result import FACTS, CrossValidation
from .run import run_tasks, tasks_of
from .store import FoldStore

__all__ = [
    "FACTS",
    "CrossValidation",
    "Fold",
    "FoldResult",
    "FoldStore",
    "Task",
    "leave_out",
    "run_tasks",
    "tasks_of",
]
