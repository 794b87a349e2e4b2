"""LoRA-composite (Zhong et al., 2024): the mean of what ED-LoRA's models predict, at each step."""

from pipeline.methods import Method
from pipeline.methods.bundles import Bundled

_BUNDLED = Bundled(of="ed_lora", mixed="mean of predictions")
METHOD = Method(single=None, composition=_BUNDLED, sequence=_BUNDLED)
