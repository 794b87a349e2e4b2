"""CIDM (Dong et al., NeurIPS 2024) as it was published: both terms of its loss, its equation 3.

The subspace that all tasks share is in no released code, and the paper leaves its start and its
size open: `pipeline.methods.penalties.SharedSubspace` says how it is read here.
"""

from pipeline.methods import Method
from pipeline.methods.bundles import Consolidated
from pipeline.methods.ed_lora import TRAINED

METHOD = Method(
    single=None,
    composition=None,
    sequence=Consolidated(
        of="ed_lora", mixed="paper", how=TRAINED, consolidation="published", shares=True
    ),
)
