"""How accuracy grows with the number of labels: the last layer, the best block, fusion."""

from layerfuse.learning_curve.draws import SHARES, check_draws, draw_rows
from layerfuse.learning_curve.measuring import learning_curve
from layerfuse.learning_curve.results import WAYS, CurvePoint, Draw, LearningCurve

__all__ = [
    "SHARES",
    "WAYS",
    "CurvePoint",
    "Draw",
    "LearningCurve",
    "check_draws",
    "draw_rows",
    "learning_curve",
]
