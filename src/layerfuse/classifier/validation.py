"""What a user hands to the classifier, checked: parameters, rows, encoders."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import COLUMNS_BLOCK, NOT_MODELS
from layerfuse.bundle import EncoderSpec, Label, Limits, Named, Settings
from layerfuse.calibration import check_calibration, check_share
from layerfuse.data import ENCODERS, find_languages
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import BlockView, check_texts
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, DataError, LayerfuseWarning, check_choice
from layerfuse.folds import Groups, text_groups
from layerfuse.labels import Column, as_list, unsaved_kinds
from layerfuse.model_selection import SearchSpace, check_links, check_search
from layerfuse.progress import Reporter
from layerfuse.resources import Budget, EncoderCost, resolve_budget
from layerfuse.selection import CostBudget, check_selection, resolve_selection
from layerfuse.targets import LabelSpace, Targets, alike_labels, odd_labels

if TYPE_CHECKING:
    from layerfuse.classifier.classifier import LayerFusionClassifier


Encoders: TypeAlias = str | Path | FrozenEncoder | Sequence[str | Path | FrozenEncoder]
"""Names, model folders or encoders, or just one."""

FRAGMENTS = ("drop", "keep")

_PREFIX = 3  # words by which the start of a longer text is looked up
_MOSTLY_FRAGMENTS = 0.5
_MOST_SEEDS = 2**31
_ENGLISH = "English"  # languages of a catalog entry
_FOREIGN = 0.5  # share of texts in other languages


@dataclass(frozen=True)
class TrainingData:
    """Rows to learn from: n texts, their targets, and their numbers (n,) among the given rows."""

    texts: list[str]
    targets: Targets
    rows: npt.NDArray[np.intp]


def check_parameters(model: LayerFusionClassifier) -> None:
    """Raise a ConfigError for a parameter of the classifier that cannot be used."""
    check_search(model.fusion, model.head)
    check_selection(model.selection)
    resolve_budget(model.budget)
    max_blocks = whole_number("max_blocks", model.max_blocks, at_least=1)
    n_encoders = len(_as_list(model.encoders))
    if model.selection == "last" and n_encoders > max_blocks:
        raise ConfigError(
            f"selection='last' takes a block of each of the {n_encoders} encoders, and "
            f"max_blocks={max_blocks} allows fewer. Raise it (--max-blocks {n_encoders}), "
            "name fewer encoders, or use selection='greedy'."
        )
    if model.calibration is not None:
        check_calibration(model.calibration)
    check_share("target_accuracy", model.target_accuracy)
    check_share("coverage", model.coverage)
    if (
        not isinstance(model.class_weight, (Mapping, type(None)))
        and model.class_weight != "balanced"
    ):
        raise ConfigError(
            f"class_weight={model.class_weight!r}: give None, 'balanced' or a mapping."
        )
    if not isinstance(model.store, (str, Path, EmbeddingStore, type(None))):
        raise ConfigError(f"store={model.store!r} cannot be used. Give 'auto', a folder or None.")
    check_choice(model.fragments, FRAGMENTS, "fragments")
    names = model.columns
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"columns={names!r} is no list of names. Give one: columns=['age'].")
    if not _gives_folds(model.cv):
        whole_number("cv", model.cv, at_least=2, also="or a splitter such as GroupKFold(5)")
    whole_number("sample_size", model.sample_size, at_least=2)
    if model.n_jobs is not None and whole_number("n_jobs", model.n_jobs, at_least=-1) == 0:
        raise ConfigError("n_jobs=0 runs nothing. Give None or -1 for all cores, or a number.")
    verbose = model.verbose
    whole_number("verbose", int(verbose) if isinstance(verbose, bool) else verbose, at_least=0)
    seed_of(0 if isinstance(model.random_state, np.random.RandomState) else model.random_state)


def check_supported(model: LayerFusionClassifier, space: LabelSpace) -> None:
    """Raise a ConfigError for a parameter that such labels do not go with."""
    check_links(model.fusion, model.head, space)
    for name in ("target_accuracy", "coverage"):
        if getattr(model, name) is not None:
            space.check_link(("softmax",), f"{name}={getattr(model, name)!r}")


def _gives_folds(cv: object) -> bool:
    """Whether it is a splitter of scikit-learn or holds folds."""
    return not isinstance(cv, str) and (hasattr(cv, "split") or isinstance(cv, Iterable))


def whole_number(name: str, value: object, *, at_least: int, also: str = "") -> int:
    """A parameter as an int; numpy's integers are taken, booleans and texts are not.

    Raises
    ------
    ConfigError
        For anything else, or less than ``at_least``.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= at_least:
        return int(value)
    raise ConfigError(
        f"{name}={value!r} cannot be used. Give a whole number of at least {at_least}"
        f"{f' {also}' if also else ''}."
    )


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """The seed that a ``random_state`` stands for; an instance and None give a new one each time.

    Raises
    ------
    ConfigError
        For what is not one.
    """
    if random_state is None:
        return int(np.random.default_rng().integers(_MOST_SEEDS))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(_MOST_SEEDS))
    seed = whole_number("random_state", random_state, at_least=0, also="or a RandomState")
    if seed >= 2**32:
        raise ConfigError(f"random_state={seed} cannot be used. Give a number below 2**32.")
    return seed


def check_training(
    X: Column,
    y: Column | None,
    sample_weight: npt.ArrayLike | None,
    groups: Column | None,
    class_weight: str | Mapping[object, float] | None,
    fragments: str,
    reporter: Reporter,
) -> TrainingData:
    """Check the rows that ``fit`` was given, and leave out those that repeat parts of others.

    Raises
    ------
    DataError
        When labels, weights or groups are not as many as the texts, one is missing or cannot be
        hashed, or there are not two rows of two classes.
    ConfigError
        For class weights that cannot be used.
    """
    texts = check_texts(X)
    if empty := sum(not text.strip() for text in texts):
        reporter.note(f"{empty} of {len(texts)} training texts are empty")
    targets = Targets.from_labels(y)
    if len(targets) != len(texts):
        raise DataError(
            f"There are {len(texts)} texts but {len(targets)} labels. Give one label for each text."
        )
    targets.check_trainable(reporter)
    if odd := unsaved_kinds(targets.space.classes.tolist()):
        reporter.note(
            f"labels of type {', '.join(odd)} cannot be saved as they are; save(path, labels=...) "
            "takes other names for them"
        )
    targets = replace(targets, weights=check_weights(sample_weight, len(texts)))
    members = None if groups is None else as_list(groups, "groups")
    if members is not None and len(members) != len(texts):
        raise DataError(
            f"There are {len(texts)} texts but {len(members)} groups. Give one for each text."
        )
    rows = _rows_to_learn(texts, targets, fragments, reporter)
    kept = _grouped(targets[rows], texts, members, rows, reporter)
    return TrainingData([texts[row] for row in rows], kept.weighted(class_weight), rows)


def check_weights(given: npt.ArrayLike | None, n: int) -> npt.NDArray[np.float64] | None:
    """Weights (n,), if there are any; a DataError for those that cannot be used."""
    if given is None:
        return None
    weights = np.asarray(given, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise DataError(f"sample_weight has shape {weights.shape}, expected ({n},).")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise DataError("sample_weight holds a number that is negative or not finite.")
    if not weights.any():
        raise DataError("Each sample_weight is zero. Give at least one row a weight above 0.")
    return weights


def _grouped(
    targets: Targets,
    texts: Sequence[str],
    members: Sequence[object] | None,
    rows: npt.NDArray[np.intp],
    reporter: Reporter,
) -> Targets:
    """Targets of some rows, of which equal texts and the groups that were given stay together."""
    own = None if members is None else [members[row] for row in rows]
    together = replace(targets, groups=text_groups([texts[row] for row in rows], own))
    if together.groups is None:
        return together
    if not together.can_fold_groups:
        given = replace(targets, groups=Groups.of(own))
        if not given.can_fold_groups:
            raise DataError(
                "Two classes or more need rows of at least two groups each, so that a group can be "
                "held out. Give more groups, or leave them out."
            )
        reporter.note(
            "there are too few different texts to hold any out: what is said of accuracy is for "
            "texts that were seen"
        )
        return given
    repeated = sum(group.size - len(group) for group in together.groups.repeated)
    reporter.note(
        f"{repeated} of {len(targets)} training rows repeat the text"
        f"{'' if own is None else ' or the group'} of another; they are held out together"
    )
    return together


def _rows_to_learn(
    texts: Sequence[str], targets: Targets, fragments: str, reporter: Reporter
) -> npt.NDArray[np.intp]:
    """Numbers of the rows to learn from: all, or those that are no part of a longer row.

    Where most rows are phrases of other rows they repeat what those say: held-out rows would not be
    new, and many short rows outweigh the whole texts. All are kept where a class of two rows or
    more would be left with fewer than two.
    """
    every = np.arange(len(texts))
    if fragments == "keep":
        return every
    contained = contained_rows(texts)
    if contained.mean() <= _MOSTLY_FRAGMENTS:
        return every
    left = targets[every[~contained]].counts
    if (left < np.minimum(2, targets.counts)).any():
        return every
    message = (
        f"{contained.sum()} of {len(texts)} training texts are part of a longer one and are left "
        f"out; {len(texts) - contained.sum()} are learned from. fragments='keep' "
        "(--fragments keep) keeps them."
    )
    reporter.note(message)
    warnings.warn(message, LayerfuseWarning, stacklevel=4)
    return every[~contained]


def warn_truncated(
    share: float, read: float, encoders: Sequence[FrozenEncoder], reporter: Reporter
) -> None:
    """Note and warn where training texts were cut; ``read`` is the share of tokens read."""
    if share > 0:
        message = (
            f"{share:.1%} of training texts were cut, and {read:.1%} of all tokens were read "
            f"({'; '.join(map(_limit, encoders))}). To read more, use windows (--windows mean,max) "
            "or more of them (--max-windows)."
        )
        reporter.note(message)
        warnings.warn(message, LayerfuseWarning, stacklevel=3)


def _limit(encoder: FrozenEncoder) -> str:
    """How much of a text an encoder reads, and whether that is the model's own limit."""
    length, whole = encoder.tokenizer.max_length, encoder.max_length
    if encoder.windows is not None:
        return f"{encoder.name}: {encoder.max_windows} windows of {encoder.window_length} tokens"
    return f"{encoder.name}: {length} tokens{', its own limit' * (length < whole)}"


def cost_of_columns(features: npt.NDArray[np.float32]) -> EncoderCost:
    """That of the columns beside texts: hardly any."""
    width = features.shape[1]
    return EncoderCost(COLUMNS_BLOCK.encoder, (width,), 4.0, 0.0, width, 0.0, n_texts=len(features))


def warn_labels(labels: Sequence[object], reporter: Reporter) -> None:
    """Note and warn where classes look like one, or like no value."""
    names = [label for label in labels if isinstance(label, str)]
    found = [" and ".join(map(repr, own)) for own in alike_labels(names)]
    messages = []
    if found:
        messages.append(
            f"classes that differ only in case or blanks are learned as different: "
            f"{'; '.join(found[:3])}. If they are one, write them alike."
        )
    if odd := odd_labels(names):
        messages.append(
            f"classes that read like a missing value are learned like others: "
            f"{', '.join(map(repr, odd[:5]))}. Leave the cells empty if their rows have no label."
        )
    for message in messages:
        reporter.note(message)
        warnings.warn(message, LayerfuseWarning, stacklevel=3)


def warn_languages(
    texts: Sequence[str], encoders: Sequence[FrozenEncoder], reporter: Reporter
) -> None:
    """Note and warn where most texts are in a language that no encoder was made for.

    Of encoders that are not in the catalog nothing is known, so that nothing is said.
    """
    entries = [ENCODERS.get(encoder.source.origin) for encoder in encoders]
    if any(entry is None or entry.languages != _ENGLISH for entry in entries):
        return
    found = find_languages(texts)
    found = tuple(language for language in found if language.code not in ("en", "zxx"))
    foreign = sum(language.share for language in found)
    if foreign > _FOREIGN:
        codes = ", ".join(f"{own.code} {own.share:.0%}" for own in found[:3])
        others = ", ".join(e.name for e in ENCODERS.values() if e.languages != _ENGLISH)
        message = (
            f"{foreign:.0%} of the texts look as if they were not English ({codes}), but "
            f"{', '.join(encoder.name for encoder in encoders)} was made for English. Encoders "
            f"for more languages: {others} (layerfuse models list)."
        )
        reporter.note(message)
        warnings.warn(message, LayerfuseWarning, stacklevel=3)


def search_space(
    model: LayerFusionClassifier, targets: Targets, costs: Mapping[str, EncoderCost], seed: int
) -> SearchSpace:
    """What the classifier's parameters, its rows and the encoders' costs leave to search."""
    budget = resolve_budget(model.budget)
    budget = replace(budget, blocks=min(int(model.max_blocks), budget.blocks or model.max_blocks))
    return SearchSpace(
        selection=resolve_selection(model.selection, targets),
        budget=CostBudget(budget, costs),
        fusion=model.fusion,
        head=model.head,
        seed=seed,
    )


def _as_list(encoders: Encoders) -> list[str | Path | FrozenEncoder]:
    if isinstance(encoders, (str, Path, FrozenEncoder)):
        return [encoders]
    if not isinstance(encoders, Iterable):
        raise ConfigError(f"encoders={encoders!r} cannot be used. Give names, paths or encoders.")
    return list(encoders)


def open_encoders(encoders: Encoders, reporter: Reporter) -> tuple[FrozenEncoder, ...]:
    """Open encoders by name or path (``NAME=PATH`` renames).

    Raises
    ------
    ConfigError
        For no encoder, or two of one name.
    """
    given = _as_list(encoders)
    if not given:
        raise ConfigError("No encoder was given. Name one, for example encoders=['minilm'].")
    opened = []
    for item in given:
        if isinstance(item, FrozenEncoder):
            opened.append(item)
            continue
        if not str(item).strip():
            raise ConfigError("An encoder's name is empty. Name one, such as minilm.")
        alias, place = ("", str(item)) if isinstance(item, Path) else _split_alias(item)
        opened.append(FrozenEncoder.from_pretrained(place, name=alias or None, reporter=reporter))
    names = [encoder.name for encoder in opened]
    if taken := sorted(NOT_MODELS.intersection(names)):
        raise ConfigError(
            f"{taken[0]!r} is the name of a block that is not of a model. Give the encoder another "
            "name: other=PATH."
        )
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"Two encoders are called {repeated[0]!r}. Give one another name: other=PATH."
        )
    return tuple(opened)


def _split_alias(item: str) -> tuple[str, str]:
    """``NAME=PLACE`` at the first "=" before an existing path, as folders may hold one, too."""
    parts = item.split("=")
    splits = [("=".join(parts[:at]), "=".join(parts[at:])) for at in range(len(parts))]
    existing = (split for split in splits if Path(split[1]).expanduser().exists())
    return next(existing, splits[min(1, len(splits) - 1)])


def settings_of(model: LayerFusionClassifier, names: Mapping[object, Label]) -> Settings:
    """The classifier's parameters in the form that a bundle keeps; ``names`` renames labels.

    A `RandomState` and a splitter cannot be kept; a warning says what is saved instead.
    """
    one_encoder = isinstance(model.encoders, (str, Path, FrozenEncoder))
    store = model.store.place if isinstance(model.store, EmbeddingStore) else model.store
    values = model.get_params(deep=False) | {
        "encoders": tuple(
            EncoderSpec.of(item) if isinstance(item, FrozenEncoder) else _named(item)
            for item in _as_list(model.encoders)
        ),
        "encoders_type": (
            "one" if one_encoder else "list" if isinstance(model.encoders, list) else "tuple"
        ),
        "budget": _limits(model.budget),
        "class_weight": _weights(model.class_weight, names),
        "columns": tuple(model.columns),
        "store": None if store is None else _named(store),
    }
    if not isinstance(model.cv, (int, np.integer)):
        n_folds = len(model.fit_record_.search.folds) if hasattr(model, "fit_record_") else 5
        values |= {"cv": n_folds}
        _not_kept("cv", "a splitter", f"cv={n_folds}")
    if isinstance(model.random_state, np.random.RandomState):
        values |= {"random_state": None}
        _not_kept("random_state", "a RandomState", "random_state=None")
    return Settings.model_validate(values)


def _limits(budget: Budget | Mapping[str, float] | None) -> Limits | None:
    if budget is None:
        return None
    limits = asdict(resolve_budget(budget))
    if isinstance(budget, Budget):
        return ("Budget", limits)
    return ("mapping", {name: limits[name] for name in budget})


def _weights(
    class_weight: str | Mapping[object, float] | None, names: Mapping[object, Label]
) -> str | tuple[tuple[Label, float], ...] | None:
    if not isinstance(class_weight, Mapping):
        return class_weight
    labels = cast(list[Label], as_list(list(class_weight), "labels"))
    labels = [names.get(label, label) for label in labels]
    return tuple(zip(labels, map(float, class_weight.values()), strict=True))


def _named(value: str | Path) -> Named:
    return ("path" if isinstance(value, Path) else "name", str(value))


def _not_kept(name: str, what: str, instead: str) -> None:
    warnings.warn(
        f"{name} is {what}, which a bundle cannot hold; it is saved as {instead}.",
        LayerfuseWarning,
        stacklevel=5,
    )


def contained_rows(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark the texts whose words are, in order and without gaps, a part of a longer text.

    Such rows are the phrases of a treebank: a model that has seen the sentence has seen its
    phrases. Words are separated by white space. Time and memory are linear in their number.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    words = [tuple(text.split()) for text in texts]
    by_start: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for text in words:
        by_start[text[:_PREFIX]].add(text)
    contained = set()
    for text in set(words):
        for start in range(len(text)):
            for length in range(1, _PREFIX + 1):
                for part in by_start.get(text[start : start + length], ()):
                    if len(part) < len(text) and text[start : start + len(part)] == part:
                        contained.add(part)
    return np.array([text in contained for text in words])


def log_candidates(
    embeddings: BlockView, encoders: Sequence[FrozenEncoder], reporter: Reporter
) -> None:
    """Report which blocks there are, and what they were computed with."""
    for encoder in encoders:
        own = [block for block in embeddings if block.encoder == encoder.name]
        layers = sorted({block.layer for block in own})
        whole = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
        shown = f"{layers[0]} to {layers[-1]}" if whole else ", ".join(map(str, layers))
        poolings = ", ".join(dict.fromkeys(block.pooling for block in own))
        reporter.note(
            f"{encoder.name}: {len(own)} candidate blocks (layers {shown}; {poolings}), "
            f"{encoder.dtype} on {encoder.device}"
        )
