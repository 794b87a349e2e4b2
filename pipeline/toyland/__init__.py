"""Toyland: a small drawn world of captioned vector scenes, 64 by 64 pixels."""
