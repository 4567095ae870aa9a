"""Evaluation: baselines, nested resampling, comparison with baselines, verdict, learning curve."""

from layerfuse.evaluation.comparison import (
    BaselineComparison,
    BaselineScore,
    Rows,
    Score,
    compare_baselines,
)
from layerfuse.evaluation.verdict import Tradeoff, Verdict, judge, tradeoffs

__all__ = [
    "BaselineComparison",
    "BaselineScore",
    "Rows",
    "Score",
    "Tradeoff",
    "Verdict",
    "compare_baselines",
    "judge",
    "tradeoffs",
]
