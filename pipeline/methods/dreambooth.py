"""DreamBooth (Ruiz et al., 2022) as the paper ran it: every weight of the UNet trains.

The text encoder stays frozen and the identifier is a rare token's embedding that does not train
(Custom Diffusion, appendix E). Its prior-preservation images are the retrieved ones here, so that
methods differ in what they train and not in their data; the paper generated them.
"""

from pipeline.methods import Trained, all_weights, rare_token

METHOD = Trained(
    weights=all_weights,
    train_token=False,
    initial_word=rare_token,
    reference="{token} {noun}",
    captions=("photo of {}",),
    regularization=True,
    resize=False,
    masked_loss=False,
    detach_start_token=False,
)
