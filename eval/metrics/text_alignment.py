"""Text-alignment: CLIPScore of an image and its prompt (Custom Diffusion, section 4.1)."""

from __future__ import annotations

import numpy as np

from eval.metrics import FloatArray, Values, doubles

SCALE = 2.5  # CLIPScore's, so that values spread over [0, 1]


def text_alignment(images: FloatArray, texts: FloatArray, scale: float = SCALE) -> Values:
    """How well each image shows what its text says: scale * max(0, cosine).

    Args:
        images: unit CLIP features [n, d].
        texts: unit CLIP features [n, d] of each image's prompt without modifier tokens.
        scale: 1 where protocols print the cosine itself (DreamBooth's CLIP-T).

    Returns:
        float64 [n].
    """
    if images.shape != texts.shape:
        raise ValueError(f"images {images.shape} and texts {texts.shape} have to correspond")
    cosines = np.einsum("nd,nd->n", doubles(images), doubles(texts))
    return np.asarray(scale * np.maximum(cosines, 0))
