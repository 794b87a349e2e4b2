"""Learning without forgetting (Li and Hoiem, 2016) of sequential Custom Diffusion.

The old task's head is the old prompt: of the new concept's noised images the model has to predict
what it predicted before this task, when asked for the concepts that it knew. No image of these is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.common.seeds import seed_of
from pipeline.methods import Chained, Context, Method, Needs, Step, Trained
from pipeline.methods.custom_diffusion import TRAINED

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.adapter import Adapter
    from pipeline.models.base import Base
    from pipeline.models.texts import Condition


@dataclass(frozen=True)
class Distilled:
    """The mean square of what has changed in the predictions for old prompts."""

    base: Base
    teacher: dict[str, Tensor]  # weights of the UNet before the task, by name
    prompts: Sequence[Condition]  # what one prompt for each old concept tells the model
    strength: float
    rows: int  # of each batch, its first; these show the new concept
    seed: int  # of the draws of old concepts

    def __call__(self, step: Step) -> Tensor:
        """The term, a scalar."""
        import torch  # tables ask methods, and need no torch

        from pipeline.models.texts import Condition

        batch = step.batch
        draw = torch.Generator().manual_seed(seed_of(self.seed, batch.step))
        drawn = torch.randint(len(self.prompts), (self.rows,), generator=draw)
        asked = Condition.joined([self.prompts[int(i)] for i in drawn])
        noisy, timesteps = batch.noisy[: self.rows], batch.timesteps[: self.rows]
        with torch.no_grad():
            known = self.base.predict(noisy, timesteps, asked, self.teacher)
        now = self.base.predict(noisy, timesteps, asked)
        return self.strength * (now - known).pow(2).mean()


class Reminded(Chained):
    """A task that is reminded of what its model made of old prompts."""

    def needs(self, concepts: Sequence[str]) -> Needs:
        """Also how strongly."""
        found = super().needs(concepts)
        return replace(found, hyper=(*found.hyper, *(["strength"] if len(concepts) > 1 else [])))

    def guarded(self, context: Context, before: Adapter) -> Trained:
        """The loss with the distillation, on half the targets of each batch."""
        import torch

        from pipeline.models.adapter import applied

        base, concepts = context.base, context.subject.concepts[:-1]
        names = self.how.weights(base.unet)
        with torch.no_grad(), applied(base, before):
            teacher = {name: base.unet.get_parameter(name).clone() for name in names}
            asked = zip(concepts, before.provenance.references)
            prompts = base.condition([c.caption.format(reference) for c, reference in asked])
        batch = context.params.train.batch_size
        penalty = Distilled(
            base=base,
            teacher=teacher,
            prompts=prompts.split(),
            strength=context.number("strength"),
            rows=max(batch // (4 if self.how.regularization else 2), 1),
            seed=seed_of(context.provenance.seed, context.subject.concepts[-1].name, "old prompts"),
        )
        return replace(self.how, penalty=penalty)


METHOD = Method(
    single=None, composition=None, sequence=Reminded(of="custom_diffusion", how=TRAINED)
)
