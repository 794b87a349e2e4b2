"""DreamBooth (Ruiz et al., 2022) as the paper ran it: every weight of the UNet trains.

The text encoder stays frozen and the identifier is a rare token's embedding that does not train;
the images for prior preservation are the base model's own (Custom Diffusion, appendix E).
"""

from pipeline.methods import Method, Trained, all_weights

TRAINED = Trained(
    weights=all_weights,
    low_rank=False,
    token="rare",
    train_token=False,
    reference="{token} {noun}",
    captions=("photo of {}",),
    regularization="generated",
    resize=False,
    masked_loss=False,
    detach_start_token=False,
)
METHOD = Method(single=TRAINED, composition=TRAINED)
