"""Custom Diffusion's constrained optimization: adapters of concepts become one (section 3.2)."""

from pipeline.methods import Merged

METHOD = Merged(of="custom_diffusion")
