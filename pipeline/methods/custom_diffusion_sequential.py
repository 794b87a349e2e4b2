"""Custom Diffusion, one concept after the other (section 4.2): what is forgotten of the first.

Each concept after the first is trained with its own regularization images and a new optimizer; the
tokens of those before it stay as they are. The paper gives no more details.
"""

from pipeline.methods import Chained, Continued, Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(
    single=None,
    composition=Continued(of="custom_diffusion", how=TRAINED),
    sequence=Chained(of="custom_diffusion", how=TRAINED),
)
