"""Ablation of Custom Diffusion: targets are mirrored, but never resized (Table 3, w/o Aug)."""

from dataclasses import replace

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=replace(TRAINED, resize=False), composition=None)
