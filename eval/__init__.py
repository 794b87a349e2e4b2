"""Measuring and reporting, room by room; each imports only from those before it.

`style`, `metrics`, `statistics`, `encoders`, `scores`, `freshness`, `results`, `tables`, `papers`,
`study`, `analyses`, `report`. Metrics see arrays and never open files; only analyses train or
sample.
"""
