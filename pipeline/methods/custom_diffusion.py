"""Custom Diffusion: K and V of cross-attention and the modifier token train (section 3.1).

On a composition the concepts are trained jointly (section 3.2).
"""

from pipeline.methods import Method, Trained
from pipeline.models.crossattn import key_value_names

TRAINED = Trained(
    weights=key_value_names,
    low_rank=False,
    token="rare",
    train_token=True,
    reference="{token} {noun}",
    captions=(),
    regularization="retrieved",
    resize=True,
    masked_loss=True,
    detach_start_token=True,
)
METHOD = Method(single=TRAINED, composition=TRAINED)
