"""What a run shows: its typed report, and that in the terminal, as a page and as charts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from layerfuse.errors import ConfigError, require

if TYPE_CHECKING:
    import altair as alt

    from layerfuse.blocks import BlockRef, BlockScores
    from layerfuse.evaluation.verdict import Verdict

__all__ = ["plot_scores", "plot_verdict"]


def plot_scores(scores: BlockScores, selected: Collection[BlockRef] = ()) -> alt.VConcatChart:
    """A curve for each pooling over the layers of each encoder, with 95% bands.

    Parameters
    ----------
    scores : BlockScores
        Such as ``classifier.profile_``.
    selected : collection of BlockRef
        Blocks to mark, such as ``classifier.plan_.blocks``.

    Returns
    -------
    altair.VConcatChart
        It shows itself in a notebook; ``save`` writes PNG, SVG or HTML.

    Raises
    ------
    ConfigError
        Where there are no scores.
    MissingExtraError
        Without the extra ``report``.
    """
    if not len(scores):
        raise ConfigError("There are no scores to draw.")
    require("altair", "report", "A figure of block scores")
    from layerfuse.report.figures import DRAWING, encoder_curves, for_notebook

    with DRAWING:
        return for_notebook(encoder_curves(scores, selected))


def plot_verdict(verdict: Verdict) -> alt.VConcatChart:
    """The pipeline's gain over each baseline, with its 95% interval.

    Parameters
    ----------
    verdict : Verdict
        Such as ``classifier.verdict_``.

    Returns
    -------
    altair.VConcatChart
        It shows itself in a notebook; ``save`` writes PNG, SVG or HTML.

    Raises
    ------
    ConfigError
        For a verdict without comparisons.
    MissingExtraError
        Without the extra ``report``.
    """
    require("altair", "report", "A figure of a verdict")
    from layerfuse.report.figures import DRAWING, for_notebook, gain_intervals
    from layerfuse.report.tables import gains_of

    gains = gains_of(verdict.comparisons, verdict.rows)
    if not gains:
        raise ConfigError("This verdict has no comparisons to draw.")
    where = "test rows" if verdict.rows == "test" else "training rows, out of fold"
    with DRAWING:
        return for_notebook({f"Gain over baselines, {where}": gain_intervals(gains)})
