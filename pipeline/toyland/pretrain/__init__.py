"""How the shipped models were made, and how good they are; no stage runs this."""
