"""ED-LoRA (Gu et al., Mix-of-Show, 2023), as CIDM uses it: cross-attention changes by a low rank.

A concept's name is a random token and one for each word of its class noun; each layer of
cross-attention sees rows of its own, and all train, ten times as fast as the factors. There are no
regularization images. Targets are seen as Custom Diffusion has them, the loss looks at them alone.
"""

from pipeline.methods import TOKENS, Method, Trained
from pipeline.models.crossattn import cross_attention_names


def rate(name: str) -> float:
    """Of what trains, in units of the method's learning rate."""
    return 10.0 if name == TOKENS else 1.0


TRAINED = Trained(
    weights=cross_attention_names,
    low_rank=True,
    token="pair",
    train_token=True,
    reference="{token}",
    captions=(),
    regularization=None,
    resize=True,
    masked_loss=True,
    detach_start_token=False,
    rate=rate,
    layered=True,
)
METHOD = Method(single=TRAINED, composition=None)
