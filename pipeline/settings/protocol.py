"""Protocols: everything that two results must have in common to be compared, as data.

`datasets/protocols/<name>.yaml` fixes which images are made and how they are measured. Its name is
part of the seed of every image and stands in every row of scores. A protocol is never changed once
results of it were published: a change gets a new name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.common.errors import BenchError
from pipeline.common.schema import Section, parse, read_yaml

PROTOCOLS = Path("datasets") / "protocols"
MetricName = Literal[
    "text_alignment",
    "image_alignment",
    "dino_image_alignment",
    "identity_map",
    "identity_top1",
    "kid",
    "fid",
]


class PromptSampling(Section):
    """The images of a subject's prompts."""

    images_per_prompt: int = Field(ge=1)
    steps: int = Field(ge=1, le=1000, description="of the sampler")


class ProtocolSampling(Section):
    """Which images are made (paper, section 4.1)."""

    single: PromptSampling = Field(description="of single concepts")
    composition: PromptSampling
    images_per_caption: int = Field(
        ge=0, description="for each held-out caption, with the steps of single concepts"
    )
    guidance_scale: float = Field(ge=1)
    eta: float = Field(ge=0, le=1, description="1: what the paper calls DDPM")

    def of(self, concepts: int) -> PromptSampling:
        """What holds for a subject of so many concepts."""
        return self.single if concepts == 1 else self.composition


class ProtocolScoring(Section):
    """How images are measured."""

    metrics: list[MetricName] = Field(min_length=1)
    clip: str = Field(description="a folder in open_clip's format, or NAME/PRETRAINED_TAG")
    text_scale: float = Field(gt=0, description="of text-alignment: 2.5 is CLIPScore's")
    text_prefix: str = Field(
        default="", description='before each scored prompt: CLIPScore has "A photo depicts "'
    )
    text_rule: Literal["class_noun"] = Field(
        default="class_noun",
        description="what stands in scored prompts for a concept: its class noun alone",
    )
    kid_features: Literal["clip", "inception"]
    leave_out: dict[MetricName, list[str]] = Field(
        default_factory=dict, description="concepts that a metric's mean leaves out"
    )

    @property
    def galleries(self) -> bool:
        """Whether a metric ranks a concept's own pictures and those of look-alikes."""
        return not {"identity_map", "identity_top1"}.isdisjoint(self.metrics)


class Protocol(Section):
    """A protocol; `prompts` has the digests of prompt lists that it fixes, by subject."""

    name: str
    about: str = Field(description="what it is, and where it is from")
    sample: ProtocolSampling
    score: ProtocolScoring
    # Not a part of `sample`, on which all images that there are depend.
    sequence: PromptSampling | None = Field(
        default=None, description="of each concept learned so far, after each task of a sequence"
    )
    prompts: dict[str, str] = Field(default_factory=dict)

    def check_prompts(self, subject: str, prompts: Sequence[str]) -> None:
        """Finds out whether the subject's prompts are those of the protocol, if it fixes them.

        Raises:
            BenchError: they are others.
        """
        fixed = self.prompts.get(subject)
        if fixed is not None and fixed != prompts_digest(prompts):
            raise BenchError(
                f"datasets/prompts/{subject}.txt: not the prompts that protocol {self.name!r} "
                "fixes: restore them, or copy the protocol to a new name without this subject"
            )


def prompts_digest(prompts: Sequence[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of prompts, one a line."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def protocol_names() -> list[str]:
    """All protocols there are."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def protocol_path(name: str) -> Path:
    """Where a protocol lies."""
    return PROTOCOLS / f"{name}.yaml"


def load_protocol(name: str, where: str = "protocol") -> Protocol:
    """The protocol of that name.

    Raises:
        BenchError: there is none, or a value is missing, unknown or out of range. The first begins
            with `where` the name stands.
    """
    path = protocol_path(name)
    if not path.is_file():
        raise BenchError(
            f"{where} {name!r} is unknown: choose one of {', '.join(protocol_names())}"
        )
    content = read_yaml(path)
    if isinstance(content, dict):
        content["name"] = name
    return parse(path, Protocol, content)
