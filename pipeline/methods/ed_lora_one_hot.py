"""ED-LoRA's adapters, of which the prompt chooses one, layer by layer."""

from pipeline.methods import Method
from pipeline.methods.bundles import Bundled

_BUNDLED = Bundled(of="ed_lora", mixed="one-hot")
METHOD = Method(single=None, composition=_BUNDLED, sequence=_BUNDLED)
