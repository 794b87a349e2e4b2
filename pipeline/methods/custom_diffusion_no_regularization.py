"""Ablation of Custom Diffusion: whole batches of targets (Table 3, w/o Reg)."""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=replace(TRAINED, regularization=None), composition=None)
