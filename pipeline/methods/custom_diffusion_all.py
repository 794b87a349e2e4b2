"""Custom Diffusion with every weight of the UNet trained ("w/ fine-tune all", section 4.1)."""

from dataclasses import replace

from pipeline.methods import Method, all_weights
from pipeline.methods.custom_diffusion import TRAINED

_ALL = replace(TRAINED, weights=all_weights)
METHOD = Method(single=_ALL, composition=_ALL)
