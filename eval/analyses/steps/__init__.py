"""See `stage`."""
