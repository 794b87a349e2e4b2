"""Custom Diffusion's constrained optimization: adapters of concepts become one (section 3.2)."""

from pipeline.methods import Merged, Method

METHOD = Method(single=None, composition=Merged(of="custom_diffusion", rule="constrained"))
