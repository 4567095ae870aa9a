"""What a run tells a person: in the terminal, and as one page that can be sent to a colleague."""

from layerfuse.report.terminal_curve import render_curve
from layerfuse.report.terminal_fit import (
    layer_chart,
    render_demo,
    render_evaluation,
    render_fit,
    render_profile,
    render_scores,
)
from layerfuse.report.terminal_pairs import render_comparison
from layerfuse.report.terminal_rows import (
    render_audit,
    render_check,
    render_rows,
    render_verify,
    render_written,
)

__all__ = [
    "layer_chart",
    "render_audit",
    "render_check",
    "render_comparison",
    "render_curve",
    "render_demo",
    "render_evaluation",
    "render_fit",
    "render_profile",
    "render_rows",
    "render_scores",
    "render_verify",
    "render_written",
]
