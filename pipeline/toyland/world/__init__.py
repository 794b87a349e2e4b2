"""The drawn world: scenes, their drawing, its personal concepts and styles, its corpus."""
