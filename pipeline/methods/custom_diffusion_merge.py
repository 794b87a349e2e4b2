"""Custom Diffusion's constrained optimization: adapters of concepts become one (section 3.2)."""

from pipeline.methods import Merged, Method

_MERGED = Merged(of="custom_diffusion", rule="constrained")
METHOD = Method(single=None, composition=_MERGED, sequence=_MERGED)
