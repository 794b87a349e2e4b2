"""Textual Inversion (Gal et al., 2022): one new word is learned, nothing else changes.

It starts as the class noun's last word and replaces the noun in prompts (Custom Diffusion,
appendix E and Fig. 6). No regularization images; targets are only mirrored.
"""

from pipeline.methods import Trained, last_word, no_weights

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

METHOD = Trained(
    weights=no_weights,
    train_token=True,
    initial_word=last_word,
    reference="{token}",
    captions=CAPTIONS,
    regularization=False,
    resize=False,
    masked_loss=False,
    detach_start_token=False,
)
