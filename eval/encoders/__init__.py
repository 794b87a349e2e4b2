"""Encoders: CLIP, DINO and Inception turn images into features, which a cache keeps."""
