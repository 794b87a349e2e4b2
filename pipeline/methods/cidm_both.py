"""CIDM as released, with the paper's second term too: the last row of its ablation.

`cidm_paper` also weighs adapters by the paper's formula, so that it differs in more than the terms.
"""

from pipeline.methods import Method
from pipeline.methods.bundles import Consolidated
from pipeline.methods.ed_lora import TRAINED

METHOD = Method(
    single=None,
    composition=None,
    sequence=Consolidated(
        of="ed_lora", mixed="released", how=TRAINED, consolidation="released", shares=True
    ),
)
