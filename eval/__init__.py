"""Measuring and reporting: features, metrics, statistics, scores, tables, figures, the report.

Each module uses only those before it in this list; metrics see arrays and never open files.
"""
