"""From a table of captioned URLs to each concept's shard: index, retrieve, fetch, shard."""
