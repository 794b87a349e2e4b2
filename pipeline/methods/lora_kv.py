"""Custom Diffusion with LoRA: K and V of cross-attention change by a low rank.

To be given the rank at which it stores as much as Custom Diffusion's compressed adapters
(appendix C). No row of the paper's tables.
"""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

_LORA = replace(TRAINED, low_rank=True)
METHOD = Method(single=_LORA, composition=_LORA)
