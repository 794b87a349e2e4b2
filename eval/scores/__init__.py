"""Scores: measuring the cells, and reading back what was measured."""
