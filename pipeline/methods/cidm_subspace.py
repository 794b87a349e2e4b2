"""CIDM with the paper's second term alone, a row of its ablation ("task-shared")."""

from pipeline.methods import Method
from pipeline.methods.bundles import Consolidated
from pipeline.methods.ed_lora import TRAINED

METHOD = Method(
    single=None,
    composition=None,
    sequence=Consolidated(
        of="ed_lora", mixed="released", how=TRAINED, consolidation=None, shares=True
    ),
)
