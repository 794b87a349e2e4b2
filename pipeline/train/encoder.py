"""Pictures of a training as the VAE sees them, each rendered and encoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.methods import TrainingSet
from pipeline.models.base import Base, moved, normalized, to_pixels
from pipeline.train.augment import View, render_view, view_mask


@dataclass(frozen=True)
class Picture:
    """A view of a target, or a regularization image and its mirroring; equal ones look equal."""

    concept: int
    view: View
    target: bool


@dataclass(frozen=True)
class Row:
    """One image of one step."""

    picture: Picture
    caption: str


class Latents(NamedTuple):
    """Pictures as the VAE sees them: means and deviations [n, c, h, w], loss masks [n, h, w]."""

    mean: Tensor
    deviation: Tensor
    mask: Tensor


class Rendered(NamedTuple):
    """Pictures before they are encoded, on the CPU."""

    pictures: Sequence[Picture]
    pixels: Tensor  # bytes [n, height, width, 3]
    masks: Tensor  # float32 [n, h, w]


class Encoder:
    """Encodes each picture of a schedule once, when it is first needed or a little before.

    What comes again is kept until its last use, so that few latents are in memory.
    """

    def __init__(
        self,
        base: Base,
        sets: Sequence[TrainingSet],
        schedule: Sequence[Sequence[Row]],
        at_once: int = 1,
    ) -> None:
        """Looks through the schedule.

        Args:
            base: has the VAE.
            sets: the images.
            schedule: the rows of each step.
            at_once: new pictures of following steps go through the VAE together until they are so
                many. With one, it is those of a step, and a picture's latents do not depend on
                what else is wanted later, even if its rounding depends on its batch.
        """
        self.base, self.sets, self.schedule = base, sets, schedule
        self.uses = Counter(row.picture for rows in schedule for row in rows)
        self.kept: dict[Picture, Latents] = {}
        self.groups: dict[int, list[Picture]] = {}  # by the step before which they are encoded
        seen: set[Picture] = set()
        last = 0
        for step, rows in enumerate(schedule):
            new = [p for p in dict.fromkeys(row.picture for row in rows) if p not in seen]
            seen.update(new)
            if new and len(self.groups.get(last, ())) >= at_once:
                last = step
            if new:
                self.groups.setdefault(last, []).extend(new)

    def rendered(self, step: int) -> Rendered | None:
        """The pictures to encode before a step, if any. A pure function: for threads."""
        pictures = self.groups.get(step)
        if not pictures:
            return None
        resolution, images = self.base.resolution, []
        for picture in pictures:
            part = self.sets[picture.concept]
            source = part.targets if picture.target else part.regularization
            images.append(render_view(picture.view, source, resolution))
        return Rendered(pictures, to_pixels(images), torch.stack([*map(self._mask, pictures)]))

    def __call__(self, step: int, rendered: Rendered | None) -> Latents:
        """The latents of a step; steps are asked for in their order, with what is new in each."""
        if rendered is not None:
            self._encode(rendered)
        pictures = [row.picture for row in self.schedule[step]]
        found = Latents(*map(torch.stack, zip(*(self.kept[p] for p in pictures))))
        self.uses.subtract(pictures)
        for picture in set(pictures):
            if not self.uses[picture]:
                del self.kept[picture]
        return found

    def _encode(self, rendered: Rendered) -> None:
        pixels, masks = (moved(part, self.base.device) for part in rendered[1:])
        mean, deviation = self.base.encode_images(normalized(pixels))
        for picture, m, d, mask in zip(rendered.pictures, mean, deviation, masks):
            # Copies, as a part of a batch would keep all of it in memory.
            self.kept[picture] = Latents(m.clone(), d.clone(), mask.clone())

    def _mask(self, picture: Picture) -> Tensor:
        return view_mask(picture.view, self.base.resolution, self.base.downsampling)

    def state(self) -> dict[str, Tensor]:
        """What is kept; see `resume`."""
        parts = list(zip(*self.kept.values()))
        return {name: torch.stack(part) for name, part in zip(("mean", "deviation"), parts)}

    def resume(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Goes on before a step, with what had been kept then.

        So nothing is encoded again, in another batch with another rounding.
        """
        encoded = [p for first, group in self.groups.items() if first < step for p in group]
        self.uses.subtract(row.picture for rows in self.schedule[:step] for row in rows)
        pictures = [p for p in encoded if self.uses[p]]
        if pictures:
            parts = (state[name].to(self.base.device) for name in ("mean", "deviation"))
            self.kept = {
                p: Latents(m.clone(), d.clone(), self._mask(p).to(m.device))
                for p, m, d in zip(pictures, *parts, strict=True)
            }
