"""Ablation of Custom Diffusion: the modifier token stays the rare one (Table 5)."""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=replace(TRAINED, train_token=False), composition=None)
