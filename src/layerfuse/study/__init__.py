"""The study: what layers and fusions bring on several datasets, and what they cost."""
