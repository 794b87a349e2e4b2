"""From a table of captioned URLs to each concept's shard: fetch, index, retrieve, shard."""
