"""CLIP, as the protocol chooses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from eval.encoders.extractor import Extractor
from pipeline.clip.openclip import Clip


def clip_extractor(clip: Clip) -> Extractor:
    """CLIP's image features as unit vectors."""
    transform = json.dumps(clip.model.visual.preprocess_cfg, sort_keys=True)
    return Extractor(clip.identity, transform, True, clip.encode_images)


def too_long(clip: Clip, texts: Sequence[str]) -> int:
    """How many of the texts have more tokens than the CLIP reads: it ignores the rest of them."""
    if not texts:
        return 0
    context = clip.model.context_length
    tokenize: Any = clip.tokenize
    tokens = tokenize(["", *texts], context_length=context + 1)
    return int((tokens[1:, -1] != tokens[0, -1]).sum())
