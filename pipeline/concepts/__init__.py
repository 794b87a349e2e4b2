"""A concept, its photographs, and the shards that hold what is learned from them."""
