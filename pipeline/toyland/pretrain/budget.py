"""How long Toyland's models are trained, and on how much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Training steps of the CLIPs and the judge, what the base sees, and of how much.

    A model that was trained for less is trained on when its number is raised. The base's are in
    pictures, as a GPU takes more of them at once.
    """

    clip: int = 2200
    scorer: int = 1800
    judge: int = 6000
    autoencoder: int = 320_000  # pictures, after the crops
    denoiser: int = 2_560_000  # noised latents
    scenes: int = 40_000  # captioned pictures, for the CLIPs and the judge
    things: int = 6_000  # individuals with two pictures each, for the scorer
    base_scenes: int = 200_000  # for the base, with several captions each
    base_scenes_by_clock: int = 900_000  # as many as a GPU's machine draws meanwhile


BUDGET = Budget()
