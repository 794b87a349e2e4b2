"""Adding concepts: photographs, data sets, drawn individuals, and what the corpus has for them."""
