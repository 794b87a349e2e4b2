"""The base model, its tokens and cross-attention, and the adapter's file."""
