"""The human study: a questionnaire of image pairs, its answers, and what they say."""
