"""What is predicted: labels as users hold them, and the one place that knows what they mean.

All that follows from a text having exactly one label (a row of the target matrix, the decision, the
link, the losses, stratification) is in `LabelSpace` and `Targets`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError
from layerfuse.groups import Groups
from layerfuse.metrics import Evaluation, evaluate_predictions
from layerfuse.progress import SILENT, Reporter

Column: TypeAlias = Iterable[object]
"""A list, tuple, numpy array, pandas or polars Series, or Arrow array of n values."""

Rows: TypeAlias = npt.NDArray[np.intp]
Floats: TypeAlias = npt.NDArray[np.floating]

Decisions: TypeAlias = npt.NDArray[np.intp]
"""What is predicted for each row, in the form that `LabelSpace.decide` gives."""

_FEW_GROUPS, _MOST_CLASSES = 1000, 5000
_SMALLEST_WEIGHT = 1e-6  # of the mean: a weight of 0 would leave a row without predictions

_TO_LIST = ("to_pylist", "to_list", "tolist")  # Arrow; polars and pandas; numpy and torch


def as_list(values: Column | None, what: str) -> list[object]:
    """The values of a column as plain Python values; ``what`` names them in messages.

    Raises
    ------
    DataError
        For a single value, a table, or what has no order.
    """
    if values is None or isinstance(values, (str, bytes)):
        got = "nothing" if values is None else "one string"
        raise DataError(f"Got {got} where {what} are expected. Give a list of them, even of one.")
    names = getattr(values, "column_names", getattr(values, "columns", None))
    if names is not None or isinstance(values, (Mapping, Set)):
        columns = ", ".join(map(str, list(values if names is None else names)[:10]))
        raise DataError(
            f"Got a {type(values).__name__} where a column of {what} is expected. Give one column "
            f"of it, such as data['text'], or a list; it holds: {columns}."
        )
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DataError(
            f"Got an array of shape {tuple(shape)} where {what} of shape (n,) are expected. Give "
            "one column of it, such as values[:, 0]."
        )
    for name in _TO_LIST:
        if hasattr(values, name) and getattr(values, "dtype", None) not in _TIMES:
            return [_plain(value) for value in getattr(values, name)()]
    try:
        if hasattr(values, "__array__") and not hasattr(values, "__iter__"):
            return as_list(np.asarray(values), what)
        return [_plain(value) for value in values]
    except TypeError as error:
        raise DataError(
            f"Got {values!r} ({type(values).__name__}) where {what} are expected. Give a list."
        ) from error


_TIMES = tuple(np.dtype(f"{kind}8[{unit}]") for kind in "Mm" for unit in ("ns", "ps", "fs", "as"))
"""Times too fine for Python's own, which ``tolist`` turns into bare integers."""


def find_classes(y: Column | None) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.intp]]:
    """The distinct labels, and for each row the number of its label.

    Labels may be of any hashable kind. They are sorted where Python can compare them, else they
    stand in the order of their first rows.

    Parameters
    ----------
    y
        Labels (n,).

    Returns
    -------
    classes, codes
        Labels (n_classes,), of dtype object where no plain dtype holds them as they are, and
        class indices (n,).

    Raises
    ------
    DataError
        For a missing label, one that cannot be hashed, or two that are equal but of two types.
    """
    if type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biu":
        classes, codes = np.unique(y, return_inverse=True)
        return classes, codes
    labels = as_list(y, "labels")
    first: dict[Hashable, object] = {}
    for row, label in enumerate(labels):
        try:
            same = first.setdefault(label, label)
        except TypeError as error:
            raise DataError(
                f"The label of row {row} is {label!r} ({type(label).__name__}), which cannot be "
                "hashed. Give one label for each text, such as a string, a number or a tuple."
            ) from error
        if is_missing(label):
            raise DataError(f"Row {row} has no label ({label!r}). Drop such rows, or label them.")
        if type(same) is not type(label):
            raise DataError(
                f"The labels {same!r} ({type(same).__name__}) and {label!r} "
                f"({type(label).__name__}, row {row}) are equal to Python. Give labels of one kind."
            )
    try:
        ordered = sorted(first)  # type: ignore[type-var]
    except TypeError:
        ordered = list(first)
    numbers = {label: number for number, label in enumerate(ordered)}
    codes = np.fromiter((numbers[label] for label in labels), dtype=np.intp, count=len(labels))
    return label_array(ordered), codes


def is_missing(value: object) -> bool:
    """Whether it is None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA is not even true or false
        return True


def _plain(value: object) -> object:
    """The Python value inside of numpy's or Arrow's wrapping."""
    if isinstance(value, np.generic) and value.dtype.kind not in "Mm":
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def label_array(labels: Sequence[object]) -> npt.NDArray[np.generic]:
    """Labels (n,) in a plain dtype where it gives back the very same values, else as objects."""
    if len({type(label) for label in labels}) == 1 and type(labels[0]) in (str, bool, int, float):
        array = np.array(labels)
        # a str that ends in NUL and an int above 64 bits come back as something else
        if array.tolist() == list(labels) and array.dtype != object:
            return array
    array = np.empty(len(labels), dtype=object)
    for number, label in enumerate(labels):  # numpy would take tuples apart
        array[number] = label
    return array


@runtime_checkable
class Splitter(Protocol):
    """A cross-validation splitter of scikit-learn, such as ``GroupKFold(5)``."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[tuple[Rows, Rows]]:
        """Numbers of training and of held-out rows, fold by fold."""


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """The labels that can be predicted, of which each text has one.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, as they were given.
    """

    classes: npt.NDArray[np.generic]

    @property
    def n_outputs(self) -> int:
        """Columns of the target matrix, of logits and of probabilities."""
        return len(self.classes)

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

    def encode(self, y: Column) -> Targets:
        """Labels (n,) as targets of this space.

        Raises
        ------
        DataError
            For a label that is not one of ``classes``.
        """
        labels = as_list(y, "labels")
        known = self.classes.tolist()
        codes = {label: code for code, label in enumerate(known)}
        # A CSV file knows only strings: its "1" is the 1 that Python trained with.
        by_text = {str(label): code for label, code in codes.items()}
        if len(by_text) == len(codes):
            for label in set(labels) - set(codes):
                if str(label) in by_text:
                    codes[label] = by_text[str(label)]
        if unknown := sorted({str(label) for label in labels if label not in codes}):
            raise DataError(
                f"Labels that do not occur in training: {', '.join(unknown[:5])}. Known labels: "
                f"{', '.join(map(str, known[:10]))}. Add training rows of these classes or leave "
                "them out."
            )
        found = np.fromiter((codes[label] for label in labels), dtype=np.intp, count=len(labels))
        return Targets(self, found)


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted for n texts.

    Attributes
    ----------
    space : LabelSpace
        What can be predicted.
    codes : ndarray of shape (n,)
        For each text the number of its label in ``space.classes``; a valid decision.
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
    codes: Rows
    groups: Groups | None = None
    weights: Floats | None = None

    @classmethod
    def from_labels(cls, y: Column | None, groups: Column | None = None) -> Targets:
        """From labels (n,) of any hashable kind, see `find_classes`, and groups (n,)."""
        classes, codes = find_classes(y)
        members = None if groups is None else as_list(groups, "groups")
        if members is not None and len(members) != len(codes):
            raise DataError(
                f"There are {len(codes)} labels but {len(members)} groups. Give one for each."
            )
        return cls(LabelSpace(classes), codes, Groups.of(members))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Rows | slice) -> Targets:
        """The targets of some rows, in the same space."""
        groups = None if self.groups is None else self.groups[rows]
        weights = None if self.weights is None else self.weights[rows]
        return Targets(self.space, self.codes[rows], groups, weights)

    @property
    def labels(self) -> npt.NDArray[np.generic]:
        """Labels (n,), as they were given."""
        return self.space.decode(self.codes)

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

    def evaluate(self, proba: npt.ArrayLike, *, seed: int = 0) -> Evaluation:
        """Metrics of probabilities (n, n_outputs) with 95% intervals."""
        return evaluate_predictions(self.codes, proba, seed=seed)

    def class_weights(
        self, given: str | Mapping[object, float] | None
    ) -> npt.NDArray[np.float64] | None:
        """The weight of each class (n_classes,), or None for equal weights.

        Parameters
        ----------
        given : {None, "balanced"} or mapping from label to weight
            As in scikit-learn: "balanced" weights classes inversely to their frequency.

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
            present = np.maximum(self.counts, 1)
            return np.asarray(len(self) / (self.space.n_outputs * present))
        labels = self.space.classes.tolist()
        if unknown := [label for label in given if label not in labels]:
            raise ConfigError(f"class_weight names {unknown[0]!r}, which is not a label.")
        if bad := [label for label, weight in given.items() if not weight > 0]:
            raise ConfigError(f"class_weight gives {bad[0]!r} a weight that is not above 0.")
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
        n_folds = max(2, min(int(cv), int(self.counts.max())))
        if self.groups is None:
            return _pairs(_stratified(self.codes, n_folds, seed))
        _, first, member = np.unique(self.groups.codes, return_index=True, return_inverse=True)
        if len(first) <= _FEW_GROUPS:
            return _pairs(_grouped(self.codes, member, max(2, min(n_folds, len(first))), seed))
        # Many groups balance by themselves, and there it takes too long to look at one at a time.
        return _pairs(_stratified(self.codes[first], n_folds, seed)[member])

    def _given_folds(self, cv: Splitter | Iterable[tuple[Rows, Rows]]) -> list[tuple[Rows, Rows]]:
        groups = self.groups
        codes = groups.codes if groups is not None and _reads_groups(cv) else None
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
        if any(len(np.unique(self.codes[rows])) < 2 for rows, _ in folds):
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


# Like scikit-learn's StratifiedKFold and StratifiedGroupKFold, whose warnings of rare classes could
# only be silenced for the whole process: wrong where several threads fit.


def _stratified(codes: Rows, n_folds: int, seed: int) -> Rows:
    """The fold of each row: each class is dealt out evenly, and so are all rows."""
    random = np.random.RandomState(seed)
    _, first, code = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[code]  # classes by their first row
    dealt = np.sort(order)
    shares = [np.bincount(dealt[fold::n_folds], minlength=len(first)) for fold in range(n_folds)]
    folds = np.empty(len(codes), dtype=np.intp)
    for number, counts in enumerate(np.transpose(shares)):
        of_class = np.arange(n_folds).repeat(counts)
        random.shuffle(of_class)
        folds[order == number] = of_class
    return folds


def _grouped(codes: Rows, groups: Rows, n_folds: int, seed: int) -> Rows:
    """The fold of each row: groups go, most uneven in classes first, where they balance best."""
    _, code = np.unique(codes, return_inverse=True)
    counts = np.zeros((groups.max() + 1, code.max() + 1))
    np.add.at(counts, (groups, code), 1.0)
    order = np.random.RandomState(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    folds = np.empty(len(counts), dtype=np.intp)
    held = np.zeros((n_folds, counts.shape[1]))
    for group in order:
        after = held + np.eye(n_folds)[:, :, None] * counts[group]  # if it went to each fold
        uneven = (after / counts.sum(axis=0)).std(axis=1).mean(axis=1)
        near = np.flatnonzero(np.isclose(uneven, uneven.min()))
        folds[group] = near[held[near].sum(axis=1).argmin()]
        held[folds[group]] += counts[group]
    return folds[groups]


def _pairs(folds: Rows) -> list[tuple[Rows, Rows]]:
    return [
        (np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)
    ]


def _reads_groups(cv: object) -> bool:
    """Whether a splitter wants groups; scikit-learn's others warn that they ignore them."""
    from sklearn.utils.metadata_routing import get_routing_for_object

    known = hasattr(cv, "get_metadata_routing")
    return not known or "groups" in get_routing_for_object(cv).consumes("split", ["groups"])


def check_trainable(labels: Sequence[object] | None, reporter: Reporter = SILENT) -> None:
    """Refuse labels of which fewer than two classes have two rows.

    A class with a single row is trained on like any other; a note says that it is always wrong in
    cross-validation.

    Raises
    ------
    DataError
        For no labels, or fewer than two classes with at least two rows.
    """
    if labels is None or len(labels) == 0:
        raise DataError("There are no labeled rows to train on. Give texts with their labels.")
    counts = Counter(labels)
    if len(counts) == 1:
        raise DataError(
            f"All {len(labels)} rows have the same label {labels[0]!r}. A classifier needs rows "
            "of at least two classes: add some, or choose another label column."
        )
    if len(counts) > _MOST_CLASSES:
        raise DataError(
            f"The labels are of {len(counts):,} classes, of at most {_MOST_CLASSES:,} that fit "
            "into memory. Is another column the label? If not, join rare classes."
        )
    single = [label for label, count in counts.items() if count == 1]
    more = f" and {len(single) - 5} more" if len(single) > 5 else ""
    names = f"{', '.join(map(repr, single[:5]))}{more}"
    if len(counts) - len(single) < 2:
        raise DataError(
            f"At least two classes need two rows or more, and {len(single)} of {len(counts)} have "
            f"only one: {names}. Add rows, or choose another label column."
        )
    if single:
        reporter.note(
            f"{len(single)} of {len(counts)} classes have only one row ({names}): it is "
            "trained on, but always wrong in cross-validation, where it is held out"
        )


def unsaved_kinds(labels: Iterable[object]) -> list[str]:
    """The kinds among the labels that a bundle cannot hold, a number or text as it is; it holds str
    that UTF-8 can encode, int, finite float and bool.
    """
    odd = [label for label in labels if not _is_saved(label)]
    return sorted(
        {repr(label) if type(label) in (float, str) else type(label).__name__ for label in odd}
    )


def _is_saved(label: object) -> bool:
    if isinstance(label, str):
        return type(label) is str and not re.search("[\ud800-\udfff]", label)
    return type(label) in (int, bool) or (type(label) is float and math.isfinite(label))
