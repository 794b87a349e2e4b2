"""What papers say and print, beside what was measured here."""
