"""The base model without any training: the reference row. It is asked for the class noun."""

from pipeline.methods import Method, Untrained

METHOD = Method(single=Untrained(), composition=Untrained())
