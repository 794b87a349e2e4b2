"""The methods under comparison: one file each, which says only what is special about it.

Beside them lie what a method is (`method`), the ready-made answers that most methods are
(`answers`), where those of other people are found (`registry`) and how often each is trained
(`seeds`).
"""

from pipeline.methods.answers import (
    TOKENS,
    Chained,
    Continued,
    Merged,
    Trained,
    Untrained,
    all_weights,
    no_weights,
    same_rate,
)
from pipeline.methods.method import (
    Batch,
    Context,
    How,
    Method,
    Needs,
    Rule,
    Session,
    Step,
    TrainingSet,
)
from pipeline.methods.registry import (
    check_methods,
    load_method,
    method_files,
    method_names,
    taken_names,
)
from pipeline.methods.seeds import training_seeds

__all__ = [
    "TOKENS",
    "Batch",
    "Chained",
    "Context",
    "Continued",
    "How",
    "Merged",
    "Method",
    "Needs",
    "Rule",
    "Session",
    "Step",
    "Trained",
    "TrainingSet",
    "Untrained",
    "all_weights",
    "check_methods",
    "load_method",
    "method_files",
    "method_names",
    "no_weights",
    "same_rate",
    "taken_names",
    "training_seeds",
]
