"""Ablation of Custom Diffusion: the base model's own images regularize (Table 3, w/ Gen)."""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=replace(TRAINED, regularization="generated"), composition=None)
