"""Saved classifiers behind HTTP, with shared encoders and batches. Needs the extra ``serve``."""
