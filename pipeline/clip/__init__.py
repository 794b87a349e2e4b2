"""CLIP in open_clip's format, which retrieval and the scores use; no base model is in here."""
