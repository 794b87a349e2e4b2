"""ED-LoRA's adapters, mixed alike: what CIDM's weights by prompt should do better than.

They add up to what CIDM's do, 0.8, so that the two differ in the weights alone.
"""

from pipeline.methods import Method
from pipeline.methods.bundles import Bundled

_BUNDLED = Bundled(of="ed_lora", mixed="equal")
METHOD = Method(single=None, composition=_BUNDLED, sequence=_BUNDLED)
