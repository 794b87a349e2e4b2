"""How fast the project is, next to the usual way of doing the same."""
