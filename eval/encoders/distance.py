"""What KID and FID see images with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.encoders.cache import Features
from eval.encoders.extractor import Extractor
from eval.encoders.inception import inception_extractor
from pipeline.settings.profile import Params


def distance_extractor(params: Params, clip: Extractor) -> Extractor:
    """What KID and FID see images with: Inception or the protocol's CLIP.

    Raises:
        BenchError: it is Inception, whose file is missing or damaged.
    """
    if params.protocol.score.kid_features == "inception":
        return inception_extractor(params.score.inception)
    return clip


def kernel_features(extractor: Extractor, images: Sequence[bytes]) -> Features:
    """Features as KID's polynomial kernel expects them, float32 [n, d]: about one per channel.

    Inception's are so already. With CLIP's unit vectors the kernel would be all but linear and see
    nothing but means, so these get the length sqrt(d); the kernel is then (cosine + 1)^3.
    """
    features = extractor(images)
    return features * np.float32(np.sqrt(features.shape[1])) if extractor.unit else features
