"""What everything uses and what knows nothing of images: errors, files, seeds, schemas, text."""
