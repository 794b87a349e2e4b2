"""How long Toyland's models are trained, and on how much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Training steps of each model, and the sizes of what they are trained on.

    A model that was trained for fewer steps is trained on when its number is raised.
    """

    clip: int = 2200
    scorer: int = 1800
    autoencoder: int = 9000
    judge: int = 4000
    denoiser: int = 6500
    denoiser_pairs: int = 4_000  # the UNet's second phase, on scenes of mostly two things
    scenes: int = 40_000  # captioned pictures, for all of them
    things: int = 6_000  # individuals with two pictures each, for the scorer


BUDGET = Budget()
