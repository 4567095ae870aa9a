"""What is predicted: the one place that knows what labels mean.

All that follows from a text having exactly one label (a row of the target matrix, the decision, the
link, the losses, stratification) is in `LabelSpace` and `Targets`; all that follows from its having
any number of them in `MultilabelSpace` and `MultilabelTargets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError
from layerfuse.folds import (
    Groups,
    Rows,
    Splitter,
    by_group,
    fold_pairs,
    grouped,
    iterative,
    normalize,
    reads_groups,
    stratified,
)
from layerfuse.labels import Column, as_list, find_classes, find_label_sets, is_missing
from layerfuse.metrics import (
    Estimate,
    Evaluation,
    LabelSetEvaluation,
    PairedDifference,
    best_f1_thresholds,
    evaluate_label_sets,
    evaluate_predictions,
    paired_difference,
    paired_f1_difference,
    share_interval,
)
from layerfuse.progress import SILENT, Reporter

Floats: TypeAlias = npt.NDArray[np.floating]

Decisions: TypeAlias = npt.NDArray[Any]
"""What is predicted for each row, in the form that `LabelSpace.decide` gives: the number of its
label (n,), or whether it has each of several labels, bool (n, n_labels)."""

_NO_VALUE = {"nan", "none", "null", "n/a", "na", "nat", "<na>", "#n/a", "?", "-", "missing"}
_FEW_GROUPS, _MOST_CLASSES = 1000, 5000
_ATTEMPTS = 20  # to find folds that leave two classes to train on
_SAMPLE_PARTS = 20  # of which a sample takes the first, each with the shares of all labels
_SMALLEST_WEIGHT = 1e-6  # of the mean: a weight of 0 would leave a row without predictions


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """The labels that can be predicted, of which each text has one.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, as they were given.
    """

    link_name: ClassVar[str] = "softmax"
    metric: ClassVar[str] = "accuracy"
    dtype: ClassVar[type[np.generic]] = np.intp
    classes: npt.NDArray[np.generic]

    @property
    def n_outputs(self) -> int:
        """Columns of the target matrix, of logits and of probabilities."""
        return len(self.classes)

    @property
    def limits(self) -> npt.NDArray[np.float64]:
        """The score from which a text has each label: none, the highest decides."""
        return np.full(self.n_outputs, np.nan)

    def tuned(self, scores: npt.ArrayLike, targets: Targets) -> Self:
        """The space that decides best by such scores, of rows that were not trained on."""
        return self

    def holds(self, codes: npt.NDArray[np.integer]) -> bool:
        """Whether integers, such as those of a file, are decisions of this space."""
        return codes.ndim == 1 and bool(((codes >= 0) & (codes < self.n_outputs)).all())

    def headline(self, value: float) -> str:
        """The metric's value in words, before its interval and the rows."""
        of_100 = 100 if value == 1 else min(99, round(100 * value))
        return f"gets {of_100} of 100 texts right: {100 * value:.1f}%"

    def tuned_by(self, score: Callable[[], npt.ArrayLike], targets: Targets) -> Self:
        """`tuned`, where scores cost something and not every space needs them."""
        return self

    def check_link(self, links: Sequence[str], what: str) -> None:
        """Raise a ConfigError where ``what``, which knows some links, does not know this one."""
        if self.link_name not in links:
            raise ConfigError(f"{what} cannot be used with multilabel data.")

    def targets(self, decisions: Decisions) -> Targets:
        """Decisions as if they were the truth."""
        return Targets(self, decisions)

    def renumbered(self, decisions: Decisions, numbers: Rows, n_outputs: int) -> Decisions:
        """Decisions in a larger space, where the labels of this one have other numbers."""
        return numbers[decisions]

    def names(self, decisions: Decisions) -> list[Any]:
        """The label of each decision: its name, or a tuple of names."""
        return list(self.decode(decisions).tolist())

    def decide(self, scores: npt.ArrayLike) -> Decisions:
        """Scores, logits or probabilities (n, n_outputs) to decisions (n,)."""
        return np.asarray(np.asarray(scores).argmax(axis=1))

    def decode(self, decisions: Decisions) -> npt.NDArray[np.generic]:
        """Decisions (n,) to labels (n,), as they were given."""
        return np.asarray(self.classes[decisions])

    def link(self, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Logits (n, n_outputs) to probabilities (n, n_outputs)."""
        from scipy.special import softmax

        return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))

    def certainty(self, proba: Floats, decisions: Decisions) -> list[float | None]:
        """The probability of each decision; None where it is of several labels."""
        return [float(own[code]) for own, code in zip(proba, decisions, strict=True)]

    def confidence(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Logits (n, n_outputs); of two classes the difference (n,), as scikit-learn gives it."""
        return logits[:, 1] - logits[:, 0] if self.n_outputs == 2 else logits

    def right(self, decisions: Decisions, y: Column) -> npt.NDArray[np.bool_]:
        """Which decisions (n,) are the labels ``y`` (n,); a label that is not known never is."""
        labels = as_list(y, "labels")
        _check_as_many(len(labels), len(decisions))
        codes = self._known_codes(labels)
        truth = np.array([codes.get(label, -1) for label in labels], dtype=np.intp)
        return np.asarray(truth == decisions)

    def encode(self, y: Column) -> Targets:
        """Labels (n,) as targets of this space.

        Raises
        ------
        DataError
            For a label that is not one of ``classes``.
        """
        labels = as_list(y, "labels")
        return Targets(self, self._codes_of(labels))

    def _known_codes(self, labels: Sequence[object]) -> dict[object, int]:
        """The number of each of these labels that is known, if only by its text."""
        codes = {label: code for code, label in enumerate(self.classes.tolist())}
        try:
            others = set(labels) - set(codes)
        except TypeError as error:
            raise DataError(
                f"The labels cannot be compared with those of training: {error}. Give one label "
                "for each text."
            ) from error
        # A CSV file knows only strings: its "1" is the 1 that Python trained with.
        by_text = {str(label): code for label, code in codes.items()}
        if len(by_text) < len(codes):
            return codes
        known = (label for label in others if str(label) in by_text and not is_missing(label))
        return codes | {label: by_text[str(label)] for label in known}

    def _codes_of(self, labels: Sequence[object]) -> Rows:
        """Numbers of labels; a DataError for one that is not known."""
        known, codes = self.classes.tolist(), self._known_codes(labels)
        if unknown := sorted({str(label) for label in labels if label not in codes}):
            alike = {normalize(str(label)): label for label in known}
            same = [name for name in unknown if normalize(name) in alike]
            advice = "Add training rows of these classes or leave them out."
            if same:
                advice = (
                    f"{same[0]!r} and {str(alike[normalize(same[0])])!r} differ only in case or "
                    "blanks: if they are one label, write it as in training."
                )
            raise DataError(
                f"Labels that do not occur in training: {', '.join(unknown[:5])}. Known labels: "
                f"{', '.join(map(str, known[:10]))}. {advice}"
            )
        return np.fromiter((codes[label] for label in labels), dtype=np.intp, count=len(labels))


@dataclass(frozen=True, eq=False)
class MultilabelSpace(LabelSpace):
    """Labels of which each text has any number.

    Attributes
    ----------
    classes : ndarray of shape (n_labels,)
        The labels, as they were given.
    thresholds : ndarray of shape (n_labels,), optional
        The score from which a text has a label; 0.5 by default.
    """

    link_name: ClassVar[str] = "sigmoid"
    metric: ClassVar[str] = "micro-F1"
    dtype: ClassVar[type[np.generic]] = np.bool_
    thresholds: npt.NDArray[np.float64] | None = None

    def tuned(self, scores: npt.ArrayLike, targets: Targets) -> Self:
        """With the thresholds of the highest F1 of each label."""
        return replace(self, thresholds=best_f1_thresholds(targets.matrix > 0, scores))

    def tuned_by(self, score: Callable[[], npt.ArrayLike], targets: Targets) -> Self:
        """`tuned` by what ``score`` returns."""
        return self.tuned(score(), targets)

    def targets(self, decisions: Decisions) -> Targets:
        """Decisions (n, n_labels) as if they were the truth."""
        return MultilabelTargets(self, decisions)

    def renumbered(self, decisions: Decisions, numbers: Rows, n_outputs: int) -> Decisions:
        """Decisions (n, n_labels) to (n, n_outputs)."""
        wide = np.zeros((len(decisions), n_outputs), dtype=bool)
        wide[:, numbers] = decisions
        return wide

    def holds(self, codes: npt.NDArray[np.integer]) -> bool:
        """Whether integers are 0 or 1, for each of the labels."""
        return codes.shape[1:] == (self.n_outputs,) and bool(np.isin(codes, (0, 1)).all())

    def headline(self, value: float) -> str:
        """The metric's value in words, before its interval and the rows."""
        return f"has a micro-F1 of {100 * value:.1f}%"

    def names(self, decisions: Decisions) -> list[Any]:
        """The labels of each decision, a tuple."""
        labels = self.classes.tolist()
        return [tuple(labels[code] for code in np.flatnonzero(row)) for row in decisions]

    def decide(self, scores: npt.ArrayLike) -> Decisions:
        """Scores or probabilities (n, n_labels) to decisions (n, n_labels)."""
        return np.asarray(np.asarray(scores) >= self.limits)

    @property
    def limits(self) -> npt.NDArray[np.float64]:
        """The thresholds (n_labels,)."""
        return np.full(self.n_outputs, 0.5) if self.thresholds is None else self.thresholds

    def decode(self, decisions: Decisions) -> npt.NDArray[np.generic]:
        """Decisions to an indicator matrix of 0 and 1, (n, n_labels)."""
        return decisions.astype(np.intp)

    def link(self, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Logits (n, n_labels) to probabilities, each by itself."""
        from scipy.special import expit

        return np.asarray(expit(np.asarray(logits, dtype=np.float64)))

    def certainty(self, proba: Floats, decisions: Decisions) -> list[float | None]:
        """None for each."""
        return [None] * len(proba)

    def confidence(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Logits (n, n_labels) as they are."""
        return logits

    def right(self, decisions: Decisions, y: Column) -> npt.NDArray[np.bool_]:
        """Which rows have all labels right; a DataError for a label that is not known."""
        truth = self.encode(y)
        _check_as_many(len(truth), len(decisions))
        return truth.correct(decisions)

    def encode(self, y: Column) -> Targets:
        """Lists of labels, or an indicator matrix with the columns of ``classes``."""
        found, shape = find_label_sets(y), getattr(y, "shape", ())
        named = hasattr(y, "columns") or hasattr(y, "column_names")
        if found is not None and not named and shape[1:] not in ((), (self.n_outputs,)):
            raise DataError(
                f"Got an indicator matrix of shape {shape}. Expected (n, {self.n_outputs}), one "
                "column for each label."
            )
        if found is None:
            raise DataError(
                "Rows have one label each, but the classifier was trained with any number of them. "
                "Give a list of labels for each row, or an indicator matrix."
            )
        classes, own = found
        if not hasattr(y, "columns") and getattr(y, "shape", (0,))[1:] == (self.n_outputs,):
            return MultilabelTargets(self, own)
        members = np.zeros((len(own), self.n_outputs), dtype=bool)
        members[:, self._codes_of(classes.tolist())] = own
        return MultilabelTargets(self, members)


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted for n texts.

    Attributes
    ----------
    space : LabelSpace
        What can be predicted.
    codes : ndarray of shape (n,)
        For each text the number of its label in ``space.classes``; a valid decision. Of several
        labels whether it has each, (n, n_labels).
    groups : Groups or None
        Rows of one group are left out together, in folds and in leave-one-out.
    weights : ndarray of shape (n,) or None
        How much each row counts where something is fitted or selected, at any scale.

    Examples
    --------
    >>> targets = Targets.from_labels(["spam", "ham", "spam"])
    >>> targets.space.classes.tolist(), targets.codes.tolist()
    (['ham', 'spam'], [1, 0, 1])
    >>> targets.matrix.tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """

    space: LabelSpace
    codes: Decisions
    groups: Groups | None = None
    weights: Floats | None = None

    @staticmethod
    def from_labels(y: Column | None, groups: Column | None = None) -> Targets:
        """From labels (n,) of any hashable kind, see `find_classes`, and groups (n,).

        Lists or sets of labels, or an indicator matrix, see `find_label_sets`, give
        `MultilabelTargets`.
        """
        sets = find_label_sets(y)
        classes, codes = sets or find_classes(y)
        space = LabelSpace(classes) if sets is None else MultilabelSpace(classes)
        members = None if groups is None else as_list(groups, "groups")
        if members is not None and len(members) != len(codes):
            raise DataError(
                f"There are {len(codes)} labels but {len(members)} groups. Give one for each."
            )
        return replace(space.targets(codes), groups=Groups.of(members))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Rows | slice) -> Targets:
        """The targets of some rows, in the same space."""
        groups = None if self.groups is None else self.groups[rows]
        weights = None if self.weights is None else self.weights[rows]
        return type(self)(self.space, self.codes[rows], groups, weights)

    @property
    def labels(self) -> npt.NDArray[np.generic]:
        """Labels (n,), as they were given, or an indicator matrix (n, n_labels)."""
        return self.space.decode(self.codes)

    @property
    def varies(self) -> bool:
        """Whether there is anything to tell apart."""
        return bool(np.count_nonzero(self.counts) >= 2)

    @property
    def can_fold(self) -> bool:
        """Whether there is after any row is left out: two classes have two rows."""
        return bool(np.count_nonzero(self.counts >= 2) >= 2)

    @property
    def can_fold_groups(self) -> bool:
        """Whether there is after any group is left out: two classes have rows of two groups."""
        if self.groups is None:
            return True
        pairs = np.unique(np.stack([self.codes, self.groups.codes]), axis=1)
        return bool(np.count_nonzero(np.bincount(pairs[0]) > 1) >= 2)

    @cached_property
    def matrix(self) -> npt.NDArray[np.float32]:
        """The target matrix (n, n_outputs) of a regression: one-hot rows."""
        matrix = np.zeros((len(self), self.space.n_outputs), dtype=np.float32)
        matrix[np.arange(len(self)), self.codes] = 1.0
        return matrix

    @cached_property
    def unit_weights(self) -> npt.NDArray[np.float32] | None:
        """Weights (n,) with a mean of 1, so that a penalty means the same at any scale.

        None where all are equal.
        """
        weights = self.weights
        if weights is None or np.ptp(weights) == 0:
            return None
        relative = np.maximum(weights / weights.mean(), _SMALLEST_WEIGHT)
        return np.asarray(relative, dtype=np.float32)

    @property
    def counts(self) -> npt.NDArray[np.intp]:
        """Rows of each output, (n_outputs,)."""
        return np.bincount(self.codes, minlength=self.space.n_outputs)

    @property
    def most_frequent(self) -> Decisions:
        """The decision for every row that is right most often, (n,)."""
        return np.full(len(self), self.counts.argmax(), dtype=np.intp)

    def correct(self, decisions: Decisions) -> npt.NDArray[np.bool_]:
        """Whether each decision (n,) is right."""
        return np.asarray(decisions == self.codes)

    def brier(self, proba: Floats) -> npt.NDArray[np.float64]:
        """Squared error of each row's probabilities (n, n_outputs), summed over outputs: 0 to 2."""
        return np.asarray(((proba - self.matrix) ** 2).sum(axis=1))

    def log_loss(self, logits: Floats, smoothing: float = 0.0) -> npt.NDArray[np.float64]:
        """Cross-entropy (n,) of logits (n, n_outputs), in nats.

        With ``smoothing`` each other class has that share of the target.
        """
        table = np.asarray(logits, dtype=np.float64)
        margins = table - table[np.arange(len(self)), self.codes][:, None]
        highest = margins.max(axis=1)
        loss = highest + np.log(np.exp(margins - highest[:, None]).sum(axis=1))
        return np.asarray(loss - smoothing * margins.sum(axis=1))

    def evaluate(
        self, proba: npt.ArrayLike, decisions: Decisions | None = None, *, seed: int = 0
    ) -> Evaluation | LabelSetEvaluation:
        """Metrics of probabilities (n, n_outputs) with 95% intervals.

        ``decisions`` are those of the space by default.
        """
        return evaluate_predictions(self.codes, proba, seed=seed)

    def parts(self, decisions: Decisions) -> npt.NDArray[np.float32]:
        """Of each row (n, 2) what it adds to the numerator and the denominator of the metric."""
        return np.column_stack([self.correct(decisions), np.ones(len(self))]).astype(np.float32)

    def measure(self, decisions: Decisions) -> Estimate:
        """The space's metric, with its 95% interval."""
        return share_interval(int(self.correct(decisions).sum()), len(self))

    def compare(self, one: Decisions, other: Decisions, *, seed: int = 0) -> PairedDifference:
        """The space's metric by some decisions minus that by others, on the same rows."""
        return paired_difference(self.correct(one), self.correct(other), seed=seed)

    def macro_f1(self, decisions: Decisions) -> float:
        """F1, averaged over labels."""
        from sklearn.metrics import f1_score

        return float(f1_score(self.codes, decisions, average="macro", zero_division=0))

    def check_trainable(self, reporter: Reporter = SILENT) -> None:
        """Refuse labels of which fewer than two classes have two rows.

        A class with a single row is trained on like any other; a note says that it is counted as an
        error in cross-validation.

        Raises
        ------
        DataError
            For no labels, or fewer than two classes with at least two rows.
        """
        if not len(self):
            raise DataError("There are no labeled rows to train on. Give texts with their labels.")
        labels, counts = self.space.classes.tolist(), self.counts
        if len(labels) == 1:
            raise DataError(
                f"All {len(self)} rows have the same label {labels[0]!r}. A classifier needs rows "
                "of at least two classes: add some, or choose another label column."
            )
        if len(labels) > _MOST_CLASSES:
            raise DataError(
                f"The labels are of {len(labels):,} classes, of at most {_MOST_CLASSES:,} that fit "
                "into memory. Is another column the label? If not, join rare classes."
            )
        single = [label for label, count in zip(labels, counts, strict=True) if count == 1]
        if not self.can_fold:
            raise DataError(
                f"At least two classes need two rows or more, and {len(single)} of {len(labels)} "
                f"have only one: {_first(single)}. Add rows, or choose another label column."
            )
        if 2 * sum(map(_is_number, single)) > len(self):
            raise DataError(
                f"The labels are {len(labels)} different numbers on {len(self)} rows "
                f"({_first(single)}): a quantity or a key, not classes. Choose another label "
                "column, or divide the numbers into a few classes."
            )
        if single:
            has = "has" if len(single) == 1 else "have"
            reporter.note(
                f"{len(single)} of {len(labels)} classes {has} only one row ({_first(single)}), "
                "which is learned from, and counts as an error in cross-validation, where it is "
                "held out"
            )

    def class_weights(
        self, given: str | Mapping[object, float] | None
    ) -> npt.NDArray[np.float64] | None:
        """The weight of each class (n_classes,), or None for equal weights.

        Parameters
        ----------
        given : {None, "balanced"} or mapping from label to weight
            "balanced" weights a class by one over the square root of its frequency, with a mean
            of 1 over rows. The full inverse, scikit-learn's rule, gained no more macro-F1 where
            labels were right and lost it where rare labels were often wrong.

        Raises
        ------
        ConfigError
            For another word, a label that does not occur, or a weight that is not above 0.
        """
        if given is None:
            return None
        if isinstance(given, str):
            if given != "balanced":
                raise ConfigError(f"class_weight={given!r}: give None, 'balanced' or a mapping.")
            by_class = np.maximum(self.counts, 1) ** -0.5
            return np.asarray(by_class / by_class[self.codes].mean())
        labels = self.space.classes.tolist()
        if unknown := [label for label in given if label not in labels]:
            raise ConfigError(f"class_weight names {unknown[0]!r}, which is not a label.")
        weight: object
        for label, weight in given.items():
            known = isinstance(weight, int | float | np.integer | np.floating)
            if not known or not 0 < float(weight) < math.inf:
                raise ConfigError(
                    f"class_weight gives {label!r} the weight {weight!r}. Give a finite number "
                    "above 0."
                )
        return np.array([given.get(label, 1.0) for label in labels], dtype=np.float64)

    def weighted(self, given: str | Mapping[object, float] | None) -> Targets:
        """With weights times those of each row's class; see `class_weights`."""
        by_class = self.class_weights(given)
        if by_class is None:
            return self
        by_row = by_class[self.codes]
        return replace(self, weights=by_row if self.weights is None else self.weights * by_row)

    def folds(
        self,
        cv: int | Splitter | Iterable[tuple[Rows, Rows]],
        seed: int,
    ) -> list[tuple[Rows, Rows]]:
        """Folds as (training rows, held-out rows); a group is never on both sides.

        Parameters
        ----------
        cv : int, splitter or iterable of (rows, rows)
            A number of shuffled folds, stratified by class (rare classes miss some folds), a
            splitter of scikit-learn, or the folds themselves.
        seed : int
            Seed of the shuffle.

        Raises
        ------
        ConfigError
            For a splitter that cannot split these rows, and folds that do not hold out each row
            once.
        """
        if not isinstance(cv, (int, np.integer)):
            return self._given_folds(cv)
        found = fold_pairs(self._fold_of_rows(int(cv), seed))
        hopeless = not self.can_fold_groups and np.count_nonzero(self.counts) < 3
        if self.groups is None or hopeless:
            return found
        # With few groups a fold may hold out all rows but those of one class.
        for attempt in range(1, _ATTEMPTS):
            if all(self[rows].varies for rows, _ in found):
                break
            found = fold_pairs(self._fold_of_rows(int(cv), (seed + attempt) % 2**32))
        return found

    def _fold_of_rows(self, cv: int, seed: int) -> Rows:
        n_folds = max(2, min(cv, int(self.counts.max())))
        if self.groups is None:
            return stratified(self.codes, n_folds, seed)
        _, first, member = np.unique(self.groups.codes, return_index=True, return_inverse=True)
        if len(first) <= _FEW_GROUPS:
            return grouped(self.codes, member, max(2, min(n_folds, len(first))), seed)
        # Many groups balance by themselves, and there it takes too long to look at one at a time.
        return stratified(self.codes[first], n_folds, seed)[member]

    def _given_folds(self, cv: Splitter | Iterable[tuple[Rows, Rows]]) -> list[tuple[Rows, Rows]]:
        groups = self.groups
        codes = groups.codes if groups is not None and reads_groups(cv) else None
        try:
            pairs = cv.split(self.codes, self.codes, codes) if isinstance(cv, Splitter) else cv
            folds = [(np.arange(len(self))[a], np.arange(len(self))[b]) for a, b in pairs]
        except (ValueError, TypeError, IndexError) as error:
            raise ConfigError(
                f"cv={cv!r} cannot split the {len(self)} rows: {error}. Give a number, a splitter "
                "such as GroupKFold(5), or pairs of row numbers."
            ) from error
        held = np.concatenate([held for _, held in folds]) if folds else np.arange(0)
        if not np.array_equal(np.sort(held), np.arange(len(self))):
            raise ConfigError(
                f"cv={cv!r} does not hold out each of the {len(self)} rows once. Give a number, or "
                "a splitter such as KFold or GroupKFold whose folds cover all rows."
            )
        if groups is not None:
            folds = [(groups.apart(*fold), fold[1]) for fold in folds]
        if not all(self[rows].varies for rows, _ in folds):
            raise ConfigError(
                f"cv={cv!r} leaves fewer than two classes to train on, without the rows whose text "
                "or group is held out. Give a splitter that keeps groups together."
            )
        return folds

    def sample(self, n_rows: int, seed: int | Sequence[int], minimum: int = 2) -> Rows:
        """Sorted numbers of about ``n_rows`` rows, each class in its share, at least ``minimum``.

        With the same seed a larger sample holds the rows of a smaller one.
        """
        if n_rows >= len(self):
            return np.arange(len(self))
        random = np.random.default_rng(seed)
        kept = []
        for code in np.unique(self.codes):
            rows = np.flatnonzero(self.codes == code)
            count = max(min(minimum, len(rows)), round(n_rows * len(rows) / len(self)))
            kept.append(random.permutation(rows)[:count])
        return np.sort(np.concatenate(kept))


@dataclass(frozen=True, eq=False)
class MultilabelTargets(Targets):
    """Any number of labels for each of n texts; ``codes`` are bool, (n, n_labels)."""

    @property
    def matrix(self) -> npt.NDArray[np.float32]:
        """The target matrix (n, n_labels): 1 where a text has the label."""
        return self.codes.astype(np.float32)

    @property
    def counts(self) -> npt.NDArray[np.intp]:
        """Rows of each label, (n_labels,)."""
        return np.asarray(self.codes.sum(axis=0))

    @property
    def most_frequent(self) -> Decisions:
        """The most frequent labels for every row, as many as have the highest micro-F1."""
        counts = self.counts
        order, n_labels = np.argsort(-counts, kind="stable"), np.arange(1, len(counts) + 1)
        f1 = 2 * counts[order].cumsum() / np.maximum(len(self) * n_labels + counts.sum(), 1)
        row = np.isin(np.arange(len(counts)), order[: 1 + f1.argmax()])
        return np.tile(row, (len(self), 1))

    @property
    def varies(self) -> bool:
        """Whether some rows have a label that others lack."""
        return bool(((self.counts > 0) & (self.counts < len(self))).any())

    @property
    def can_fold(self) -> bool:
        """Whether two rows have a label that two others lack."""
        return bool((np.minimum(self.counts, len(self) - self.counts) >= 2).any())

    @property
    def can_fold_groups(self) -> bool:
        """Whether rows of two groups have a label that rows of two groups lack."""
        if self.groups is None:
            return True
        having, lacking = (
            by_group(own, self.groups).sum(axis=0) for own in (self.codes, ~self.codes)
        )
        return bool((np.minimum(having, lacking) >= 2).any())

    def check_trainable(self, reporter: Reporter = SILENT) -> None:
        """Refuse labels of which none is on two rows and missing on two others.

        A note names those that no row has, or all, and those of a single row.

        Raises
        ------
        DataError
            For no rows, fewer than two labels in all, or no such label.
        """
        if not len(self):
            raise DataError("There are no labeled rows to train on. Give texts with their labels.")
        if self.space.n_outputs < 2:
            raise DataError(
                "Rows have any number of labels, but there are fewer than two labels in all. Give "
                "at least two, or one label a row: which of two classes it is."
            )
        if not self.can_fold:
            raise DataError(
                f"None of the {self.space.n_outputs} labels is on two of the {len(self)} rows and "
                "missing on two others. Add rows, or choose another label column."
            )
        if (self.codes.sum(axis=1) == 1).all():
            reporter.note(
                "each text has exactly one of several labels; if that is meant, give labels alone"
            )
        pairs = list(zip(self.space.classes.tolist(), self.counts.tolist(), strict=True))
        if constant := [label for label, count in pairs if count in (0, len(self))]:
            reporter.note(
                f"{len(constant)} of {len(pairs)} labels are on no row or on all "
                f"({_first(constant)}): nothing can be learned of them"
            )
        if single := [label for label, count in pairs if count == 1]:
            reporter.note(
                f"{len(single)} of {len(pairs)} labels are on a single row ({_first(single)}), "
                "which is learned from, and counts as an error in cross-validation, where it is "
                "held out"
            )

    def correct(self, decisions: Decisions) -> npt.NDArray[np.bool_]:
        """Whether each row has just the labels of the decision."""
        return np.asarray((decisions == self.codes).all(axis=1))

    def brier(self, proba: Floats) -> npt.NDArray[np.float64]:
        """Squared error of each row's probabilities (n, n_labels), averaged over labels: 0 to 1."""
        return np.asarray(((proba - self.matrix) ** 2).mean(axis=1))

    def log_loss(self, logits: Floats, smoothing: float = 0.0) -> npt.NDArray[np.float64]:
        """Binary cross-entropy (n,) of logits (n, n_labels), averaged over labels, in nats."""
        table = np.asarray(logits, dtype=np.float64)
        return np.asarray((np.logaddexp(0.0, table) - self.codes * table).mean(axis=1))

    def evaluate(
        self, proba: npt.ArrayLike, decisions: Decisions | None = None, *, seed: int = 0
    ) -> LabelSetEvaluation:
        """Metrics of probabilities (n, n_labels) and of decisions, with 95% intervals."""
        found = self.space.decide(proba) if decisions is None else decisions
        return evaluate_label_sets(self.codes, proba, found, seed=seed)

    def parts(self, decisions: Decisions) -> npt.NDArray[np.float32]:
        """Of each row (n, 2) twice its hits, and its labels plus those that are predicted."""
        hits = (decisions & self.codes).sum(axis=1)
        either = decisions.sum(axis=1) + self.codes.sum(axis=1)
        return np.column_stack([2 * hits, either]).astype(np.float32)

    def measure(self, decisions: Decisions) -> Estimate:
        """Micro-F1, with its 95% interval: what it is above that of no label at all, which is 0."""
        own = self.compare(decisions, np.zeros_like(decisions))
        return Estimate(own.difference, own.low, own.high)

    def compare(self, one: Decisions, other: Decisions, *, seed: int = 0) -> PairedDifference:
        """Micro-F1 by some decisions minus that by others, on the same rows."""
        return paired_f1_difference(self.codes, one, other, seed=seed)

    def class_weights(
        self, given: str | Mapping[object, float] | None
    ) -> npt.NDArray[np.float64] | None:
        """None; several labels a row have no class whose weight would be the row's.

        Raises
        ------
        ConfigError
            For anything but None.
        """
        if given is not None:
            raise ConfigError(
                f"class_weight={given!r} cannot be used with multilabel data: "
                "each label has a threshold of its own. Leave it out, or give sample_weight."
            )
        return None

    def _fold_of_rows(self, cv: int, seed: int) -> Rows:
        if self.groups is None:
            n_folds = max(2, min(cv, len(self)))
            return iterative(self.codes, np.full(n_folds, 1 / n_folds), seed)
        together = by_group(self.codes, self.groups)
        _, member = np.unique(self.groups.codes, return_inverse=True)
        n_folds = max(2, min(cv, len(together)))
        return iterative(together, np.full(n_folds, 1 / n_folds), seed)[member]

    def sample(self, n_rows: int, seed: int | Sequence[int], minimum: int = 2) -> Rows:
        """Sorted numbers of about ``n_rows`` rows, each label in its share.

        At least ``minimum`` rows have each, where as many do. With the same seed a larger sample
        holds the rows of a smaller one.
        """
        if n_rows >= len(self):
            return np.arange(len(self))
        n_parts = min(_SAMPLE_PARTS, len(self))
        parts = iterative(self.codes, np.full(n_parts, 1 / n_parts), seed)
        shuffled = np.random.default_rng(seed).permutation(len(self))  # a part may be cut
        order = shuffled[np.argsort(parts[shuffled], kind="stable")]
        of_label = [order[self.codes[order, label]] for label in range(self.space.n_outputs)]
        return np.unique(np.concatenate([order[:n_rows], *(own[:minimum] for own in of_label)]))


def _check_as_many(n_labels: int, n_texts: int) -> None:
    if n_labels != n_texts:
        raise DataError(
            f"There are {n_texts} texts but {n_labels} labels. Give one label for each text."
        )


def check_trainable(labels: Sequence[object] | None) -> None:
    """Refuse labels that nothing can be learned from; see `Targets.check_trainable`."""
    Targets.from_labels(labels or ()).check_trainable()


def _is_number(label: object) -> bool:
    """Whether it is a number, with a decimal point or comma."""
    try:
        float(str(label).replace(",", "."))
    except ValueError:
        return False
    return True


def _first(labels: Iterable[object], most: int = 5) -> str:
    """Some labels, as messages name them."""
    shown = list(map(repr, labels))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return f"{', '.join(shown[:most])}{more}"


def alike_labels(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Labels that differ only in case and white space, those that are alike together."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(normalize(name), []).append(name)
    return tuple(tuple(own) for own in alike.values() if len(own) > 1)


def odd_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Labels that read like a missing value, such as "nan"."""
    return tuple(name for name in names if normalize(name) in _NO_VALUE)
