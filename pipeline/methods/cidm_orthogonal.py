"""CIDM with the term that its text describes: factors of different concepts are orthogonal."""

from pipeline.methods import Method
from pipeline.methods.bundles import Consolidated
from pipeline.methods.ed_lora import TRAINED

METHOD = Method(
    single=None,
    composition=None,
    sequence=Consolidated(of="ed_lora", mixed="released", how=TRAINED, consolidation="orthogonal"),
)
