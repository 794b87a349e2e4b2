"""Adapters in and out: compression, and the formats of other programs."""
