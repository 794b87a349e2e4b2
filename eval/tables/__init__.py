"""Tables: built of results, and written for people and programs."""
