"""Which images a cell has: what the protocol asks for, from which seeds, and under which keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar
from pipeline.common.seeds import seed_of
from pipeline.concepts.concept import Subject
from pipeline.settings.profile import Params


@dataclass(frozen=True)
class Request:
    """One image to make."""

    key: str
    prompt: str
    seed: int
    record: dict[str, str | int]  # kept beside the image


def cell_requests(
    params: Params, subject: Subject, references: Sequence[str], captions: Sequence[str]
) -> list[Request]:
    """All images of a cell: those of the subject's prompts, then those of captions.

    Args:
        params: say by which protocol.
        subject: what was to be learned.
        references: what stands for each concept in the prompt given to the model.
        captions: see `held_out_captions`.

    Raises:
        BenchError: there are not as many references as concepts.
    """
    protocol = params.protocol
    requests = prompt_requests(
        protocol.name,
        subject.name,
        subject.prompts,
        references,
        [concept.class_noun for concept in subject.concepts],
        protocol.sample.of(len(subject.concepts)).images_per_prompt,
    )
    count = protocol.sample.images_per_caption
    return requests + caption_requests(protocol.name, subject.name, captions, count)


def task_requests(params: Params, task: Subject, references: Sequence[str]) -> list[list[Request]]:
    """The images after a task of a sequence: for each concept learned so far, of its own prompts.

    An image's noise is that which it has in the concept's own cell, whatever the task.

    Raises:
        BenchError: there are not as many references as concepts, or the protocol has no sequences.
    """
    if len(references) != len(task.concepts):
        raise _other_references(task.name, references, [c.class_noun for c in task.concepts])
    count = params.task_sampling().images_per_prompt
    return [
        [
            replace(
                request,
                key=f"{place:03d}-{request.key}",
                record=request.record | {"concept": concept.name},
            )
            for request in prompt_requests(
                params.protocol.name,
                concept.name,
                concept.prompts,
                [reference],
                [concept.class_noun],
                count,
            )
        ]
        for place, (concept, reference) in enumerate(zip(task.concepts, references), 1)
    ]


def held_out_captions(params: Params, subject: Subject) -> list[str]:
    """The captions of held-out real images that KID needs images of; none if it does not.

    Raises:
        BenchError: the shard of regularization images is missing or damaged.
        FailureError: it could not be made.
    """
    if len(subject.concepts) > 1 or not params.protocol.sample.images_per_caption:
        return []
    real = read_tar(params.runs() / "regularization" / f"{subject.name}.tar")
    return [s["txt"] for s in real if s["json"]["part"] == "held_out"]


def prompt_requests(
    protocol: str,
    subject: str,
    templates: Sequence[str],
    references: Sequence[str],
    nouns: Sequence[str],
    count: int,
) -> list[Request]:
    """`count` images for each prompt template of a subject.

    The seed comes from the template, not from the references put into it, so all methods start
    an image from the same noise.

    Args:
        references: what stands for each concept in the prompt given to the model.
        nouns: what stands for it in the prompt that is scored.

    Raises:
        BenchError: there are not as many references as nouns.
    """
    if len(references) != len(nouns):
        raise _other_references(subject, references, nouns)
    return [
        Request(
            key=f"prompt-{p:03d}-{s:03d}",
            prompt=template.format(*references),
            seed=(seed := seed_of(protocol, subject, template, s)),
            record={
                "part": "prompt",
                "prompt_index": p,
                "sample": s,
                "prompt": template.format(*references),
                "scored_prompt": template.format(*nouns),
                "seed": seed,
            },
        )
        for p, template in enumerate(templates)
        for s in range(count)
    ]


def _other_references(subject: str, references: Sequence[str], nouns: Sequence[str]) -> BenchError:
    return BenchError(
        f"{subject}: its adapter is of {', '.join(references)}, not of {', '.join(nouns)}: "
        "train it again"
    )


def caption_requests(
    protocol: str, subject: str, captions: Sequence[str], count: int
) -> list[Request]:
    """`count` images for each caption of a real held-out image, for KID (paper, Table 7)."""
    return [
        Request(
            key=f"caption-{c:03d}-{s:03d}",
            prompt=caption,
            seed=(seed := seed_of(protocol, subject, "caption", c, caption, s)),
            record={
                "part": "caption",
                "prompt_index": c,
                "sample": s,
                "prompt": caption,
                "scored_prompt": caption,
                "seed": seed,
            },
        )
        for c, caption in enumerate(captions)
        for s in range(count)
    ]
