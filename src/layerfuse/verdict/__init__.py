"""Whether it was worth it: comparisons with baselines, the decision, and its sentence."""

from layerfuse.verdict.comparing import Comparison, Rows, compare_baselines
from layerfuse.verdict.judging import Verdict, decide, judge, tradeoffs

__all__ = ["Comparison", "Rows", "Verdict", "compare_baselines", "decide", "judge", "tradeoffs"]
