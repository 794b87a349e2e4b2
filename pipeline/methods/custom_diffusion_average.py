"""The mean of Custom Diffusion's adapters: what constrained optimization should do better than."""

from pipeline.methods import Merged, Method

METHOD = Method(single=None, composition=Merged(of="custom_diffusion", rule="average"))
