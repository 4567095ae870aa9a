"""Whether two classifiers are right on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from layerfuse.metrics import check_correct_pair

__all__ = ["Agreement", "measure_agreement"]


@dataclass(frozen=True)
class Agreement:
    """How many rows both, one or none of two classifiers a and b get right.

    The measures are those of Kuncheva and Whitaker, "Measures of Diversity in Classifier
    Ensembles" (Machine Learning 51, 2003); all but Q are shares of rows from 0 to 1.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracy_a(self) -> float:
        return (self.both + self.only_a) / self.n

    @property
    def accuracy_b(self) -> float:
        return (self.both + self.only_b) / self.n

    @property
    def disagreement(self) -> float:
        """Exactly one is right."""
        return (self.only_a + self.only_b) / self.n

    @property
    def double_fault(self) -> float:
        """Both are wrong."""
        return self.neither / self.n

    @property
    def oracle_accuracy(self) -> float:
        """At least one is right: what a perfect judge between the two would reach."""
        return 1.0 - self.neither / self.n

    @property
    def yules_q(self) -> float:
        """Yule's Q (1900), from -1 (never right together) over 0 (independent) to 1.

        Its denominator is 0 exactly when one of the two is right on every row or wrong on every
        row. Such a one is independent of any other, so that Q is 0 there.
        """
        together, apart = self.both * self.neither, self.only_a * self.only_b
        return (together - apart) / (together + apart) if together + apart else 0.0

    def to_dict(self) -> dict[str, float]:
        """The measures by name, without the counts."""
        return {
            "disagreement": self.disagreement,
            "yules_q": self.yules_q,
            "double_fault": self.double_fault,
            "oracle_accuracy": self.oracle_accuracy,
        }


def measure_agreement(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> Agreement:
    """Count how often two classifiers are right on the same rows.

    Parameters
    ----------
    correct_a, correct_b : (n,) bool, whether each row's prediction is right

    Raises
    ------
    DataError
        For arrays that are not bool, not of one shape (n,), or empty.
    """
    a, b = check_correct_pair(correct_a, correct_b)
    return Agreement(
        both=int((a & b).sum()),
        only_a=int((a & ~b).sum()),
        only_b=int((b & ~a).sum()),
        neither=int((~a & ~b).sum()),
    )
