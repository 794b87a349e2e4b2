"""Textual Inversion (Gal et al., 2022): one new word is learned, nothing else changes.

It starts as the class noun's last word and replaces the noun in prompts (Custom Diffusion,
appendix E and Fig. 6). No regularization images; targets are only mirrored. A composition has the
words that were learned separately (section 4.2).
"""

from pipeline.methods import Merged, Method, Trained, no_weights

CAPTIONS = (
    "a photo of {}",
    "photo of {}",
    "a picture of {}",
    "a cropped photo of {}",
    "a close up photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "a photo of my {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a photo of a cool {}",
    "a photo of a clean {}",
    "a rendition of {}",
    "a depiction of {}",
)

_MERGED = Merged(of="textual_inversion", rule="average")
METHOD = Method(
    single=Trained(
        weights=no_weights,
        low_rank=False,
        token="noun",
        train_token=True,
        reference="{token}",
        captions=CAPTIONS,
        regularization=None,
        resize=False,
        masked_loss=False,
        detach_start_token=False,
    ),
    composition=_MERGED,
    sequence=_MERGED,
)
