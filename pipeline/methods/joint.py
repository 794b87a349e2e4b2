"""Custom Diffusion on the images of all concepts so far at once: no sequence, but its ceiling.

It breaks the rule of sequences: images of earlier concepts are there.
"""

from pipeline.methods import Method
from pipeline.methods.custom_diffusion import TRAINED

METHOD = Method(single=None, composition=None, sequence=TRAINED)
