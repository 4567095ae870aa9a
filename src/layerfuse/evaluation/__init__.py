"""Evaluation: nested resampling, baselines, verdict, learning curve."""

from layerfuse.evaluation.verdict import (
    BaselineComparison,
    BaselineScore,
    GeneralizationGap,
    Rows,
    Score,
    Tradeoff,
    Verdict,
    VerdictSummary,
    compare_baselines,
    judge,
    measure_gap,
    tradeoffs,
)

__all__ = [
    "BaselineComparison",
    "BaselineScore",
    "GeneralizationGap",
    "Rows",
    "Score",
    "Tradeoff",
    "Verdict",
    "VerdictSummary",
    "compare_baselines",
    "judge",
    "measure_gap",
    "tradeoffs",
]
