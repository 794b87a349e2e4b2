"""Looks behind the table: what methods change, what that costs, and what it does to the model.

Each module is a few pure functions and one stage, which writes CSV and figures to
`<report folder>/analyses/<its name>/`.
"""
