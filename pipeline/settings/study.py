"""The section `study` of `params.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.common.schema import Section


class StudyParams(Section):
    """The human study (paper, section 4.3): which questions are asked, and which answers count."""

    title: str = "Which image is better?"
    seed: int = 1
    kinds: tuple[Literal["text", "image"], ...] = Field(default=("text", "image"), min_length=1)
    references: tuple[str, ...] = Field(
        default=("custom_diffusion",),
        min_length=1,
        description="methods that are compared with every other one",
    )
    questions: int = Field(
        default=40, ge=1, description="per kind and pair of methods, of concepts and compositions"
    )
    block: int = Field(default=20, ge=2, description="questions that a rater answers in one go")
    checks: int = Field(default=3, ge=0, description="of these, attention checks")
    targets: int = Field(default=4, ge=1, description="target images shown, of all concepts")
    minimum_seconds: float = Field(default=1.0, ge=0, description="to look before answering")
    image_url: str = Field(
        default="images/", description="what AMT puts before an image's name: https://.../images/"
    )
    checks_passed: float = Field(
        default=0.8, ge=0, le=1, description="least share of attention checks that a rater passes"
    )
