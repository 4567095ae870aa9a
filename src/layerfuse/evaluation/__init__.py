"""Evaluation: nested resampling, baselines, verdict, learning curve."""
