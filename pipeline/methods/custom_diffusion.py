"""Custom Diffusion: K and V of cross-attention and the modifier token train (section 3.1).

On a composition the concepts are trained jointly, each with its share of every batch.
"""

from pipeline.crossattn import key_value_names
from pipeline.methods import Trained, rare_token

METHOD = Trained(
    weights=key_value_names,
    train_token=True,
    initial_word=rare_token,
    reference="{token} {noun}",
    captions=(),
    regularization=True,
    resize=True,
    masked_loss=True,
    detach_start_token=True,
)
