"""Ablation of Custom Diffusion: the modifier token starts from random numbers (Table 5)."""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=replace(TRAINED, token="normal"), composition=None)
