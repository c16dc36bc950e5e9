"""Evaluation images: scores, neighbors before and after, maps."""
