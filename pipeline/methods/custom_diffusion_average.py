"""The mean of Custom Diffusion's adapters: what constrained optimization should do better than."""

from pipeline.methods import Merged, Method

_MERGED = Merged(of="custom_diffusion", rule="average")
METHOD = Method(single=None, composition=_MERGED, sequence=_MERGED)
