"""What a profile says: its parameters, its grid, and the protocol they name."""
