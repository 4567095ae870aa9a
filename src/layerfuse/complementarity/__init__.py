"""Which blocks are worth combining, from training rows alone."""

from layerfuse.complementarity.additions import Addition, rank_additions
from layerfuse.complementarity.comparison import PAIRINGS, Comparison, check_pairing, compare
from layerfuse.complementarity.inputs import Labelled, find_blocks
from layerfuse.complementarity.pairs import HEADLINE, MEASURES, Pair, measure_pairs

__all__ = [
    "HEADLINE",
    "MEASURES",
    "PAIRINGS",
    "Addition",
    "Comparison",
    "Labelled",
    "Pair",
    "check_pairing",
    "compare",
    "find_blocks",
    "measure_pairs",
    "rank_additions",
]
