"""Orthogonal Adaptation (Po et al., 2023): changes of low rank that hardly meet when added.

`down` is some rows of one orthonormal basis, drawn for each concept without knowledge of the
others, and does not train. Of K and V here, with Custom Diffusion's tokens and data. Changes of
concepts whose rows differ are orthogonal; that does not make one do nothing to another's text.
"""

from dataclasses import replace

from pipeline.methods import Merged, Method
from pipeline.methods.custom_diffusion import TRAINED

_MERGED = Merged(of="orthogonal_adaptation", rule="sum")
METHOD = Method(
    single=replace(TRAINED, low_rank=True, orthonormal=True),
    composition=_MERGED,
    sequence=_MERGED,
)
