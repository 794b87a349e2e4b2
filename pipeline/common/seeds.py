"""Seeds that are derived from what they are for, and from nothing else."""

from __future__ import annotations

import hashlib


def seed_of(*purpose: object) -> int:
    """A seed in [0, 2^63) for the words and numbers that say what it is for."""
    text = "\x1f".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
