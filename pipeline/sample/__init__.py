"""Stage `sample`: the one sampler; and the base model's own images of a class."""
