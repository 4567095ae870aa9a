"""Evaluation: baselines, nested resampling, comparison with baselines, verdict, learning curve."""

from layerfuse.evaluation.verdict import (
    BaselineComparison,
    BaselineScore,
    Rows,
    Score,
    Tradeoff,
    Verdict,
    compare_baselines,
    judge,
    tradeoffs,
)

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
