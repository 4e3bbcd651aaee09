"""Cross-validation: every section predicted by a model that never saw it, by several methods and seeds."""

from .folds import Fold, FoldResult, Task, Tested, leave_out
from .labels import settings_of
from .probe import PROBES, held_out_predictions
from .result import FACTS, CrossValidation
from .run import run_tasks, tasks_of
from .store import FoldStore

__all__ = [
    "FACTS",
    "PROBES",
    "CrossValidation",
    "Fold",
    "FoldResult",
    "FoldStore",
    "Task",
    "Tested",
    "held_out_predictions",
    "leave_out",
    "run_tasks",
    "settings_of",
    "tasks_of",
]
