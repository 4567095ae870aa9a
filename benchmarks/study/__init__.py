"""The study: the papers' claims about layers and fusion, measured on several datasets."""
