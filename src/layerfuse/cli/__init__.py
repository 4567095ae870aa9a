"""Command line: parsing and printing only; the work is in `layerfuse.commands`."""

from layerfuse.cli.app import main

__all__ = ["main"]
