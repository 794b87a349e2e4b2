"""Several concepts in a picture, each in its place: layouts, and sessions that follow them."""
