"""Trained pipelines in formats that other tools load, checked against the pipeline itself."""
