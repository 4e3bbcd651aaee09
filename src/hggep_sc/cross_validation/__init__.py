"""Cross-validation: every section predicted by a model that never saw it, by several methods and seeds."""

from .folds import Fold, FoldResult, Task, Tested, leave_out
from .foreign import ForeignResult, foreign_layers, score_foreign
from .labels import settings_of
from .probe import PROBES, held_out_predictions
from .result import FACTS, CrossValidation
from .run import encoders_of, run_tasks, tasks_of
from .statistics import result_moments, training_statistics
from .store import FoldStore

__all__ = [
    "FACTS",
    "PROBES",
    "CrossValidation",
    "Fold",
    "FoldResult",
    "FoldStore",
    "ForeignResult",
    "Task",
    "Tested",
    "encoders_of",
    "foreign_layers",
    "held_out_predictions",
    "leave_out",
    "result_moments",
    "run_tasks",
    "score_foreign",
    "settings_of",
    "tasks_of",
    "training_statistics",
]
