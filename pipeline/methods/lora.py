"""DreamBooth with LoRA (Hu et al., 2021): all attention matrices change by a low rank.

The scale is one (alpha = rank), the first factor starts normal and the second at zero, as in
diffusers' script. No row of the paper's tables.
"""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.dreambooth import TRAINED
from pipeline.models.crossattn import attention_names

_LORA = replace(TRAINED, weights=attention_names, low_rank=True)
METHOD = Method(single=_LORA, composition=_LORA)
