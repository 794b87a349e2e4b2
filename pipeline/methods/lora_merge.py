"""LoRA-merge (Zhong et al., 2024): the mean of ED-LoRA's adapters.

The public code of multi-LoRA adds them up instead, which overdrives many of them.
"""

from pipeline.methods import Merged, Method

_MERGED = Merged(of="ed_lora", rule="average")
METHOD = Method(single=None, composition=_MERGED, sequence=_MERGED)
