"""Makes things: corpus, index, regularization, shards, adapters, samples."""
