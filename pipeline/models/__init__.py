"""The base model, its tokens and cross-attention, CLIP, and the adapter's file."""
