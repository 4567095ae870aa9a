"""Whether it was worth it: comparisons with baselines, the decision, and its sentence."""

from layerfuse.evaluation.comparison import Comparison, Rows, compare_baselines
from layerfuse.evaluation.verdict import Verdict, decide, judge, tradeoffs

__all__ = ["Comparison", "Rows", "Verdict", "compare_baselines", "decide", "judge", "tradeoffs"]
