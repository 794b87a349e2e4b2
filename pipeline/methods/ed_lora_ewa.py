"""CIDM without its losses: ED-LoRA's adapters, weighed for each prompt by its released code."""

from pipeline.methods import Method
from pipeline.methods.bundles import Bundled

_BUNDLED = Bundled(of="ed_lora", mixed="released")
METHOD = Method(single=None, composition=_BUNDLED, sequence=_BUNDLED)
