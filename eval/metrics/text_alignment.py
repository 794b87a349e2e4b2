"""Text-alignment: CLIPScore of an image and its prompt (Custom Diffusion, section 4.1)."""

from __future__ import annotations

import numpy as np

from eval.metrics import FloatArray, PerImage

SCALE = 2.5  # CLIPScore's, so that values spread over [0, 1]


def text_alignment(images: FloatArray, texts: FloatArray) -> PerImage:
    """How well each image shows what its text says: 2.5 * max(0, cosine), in [0, 2.5].

    Args:
        images: unit CLIP features [n, d].
        texts: unit CLIP features [n, d] of each image's prompt without modifier tokens.
    """
    if images.shape != texts.shape:
        raise ValueError(f"images {images.shape} and texts {texts.shape} have to correspond")
    cosines = np.einsum("nd,nd->n", images, texts, dtype=np.float64)
    return PerImage(SCALE * np.maximum(cosines, 0), "2.5 * cosine")
