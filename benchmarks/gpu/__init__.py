"""A GPU, from correctness to speed, in one command."""
