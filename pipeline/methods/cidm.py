"""CIDM (Dong et al., NeurIPS 2024) as its code was released.

Every concept is trained from the base, with a term that looks at earlier concepts' factors, and
adapters are weighed for each prompt (elastic weight aggregation). The paper's second term, with its
subspace shared by all tasks, is not in the released code.
"""

from pipeline.methods import Method
from pipeline.methods.bundles import Consolidated
from pipeline.methods.ed_lora import TRAINED

METHOD = Method(
    single=None,
    composition=None,
    sequence=Consolidated(of="ed_lora", mixed="released", how=TRAINED, consolidation="released"),
)
