"""The nouns: which embeddings there are, how good they are, and which were chosen."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from layerfuse.errors import ConfigError, check_choice, require
from layerfuse.pooling import POOLINGS, WINDOW_POOLINGS

if TYPE_CHECKING:
    import pandas as pd


_SHOWN = 12  # blocks in a notebook's table

Layers: TypeAlias = int | Sequence[int] | Literal["all"]

Poolings: TypeAlias = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Poolings for all encoders, or for each encoder by its name."""


@dataclass(frozen=True, order=True)
class BlockRef:
    """One (encoder, layer, pooling): the unit that is scored, selected and fused.

    ``layer`` is 0 for the embedding output and ``i`` for the output of block ``i``.
    As text it is ``"mpnet:8:mean"``; over windows of a text, ``"mpnet:8:mean/max"`` is the maximum
    of the means of the windows.
    """

    encoder: str
    layer: int
    pooling: str

    def __str__(self) -> str:
        return f"{self.encoder}:{self.layer}:{self.pooling}"

    @property
    def windowed(self) -> bool:
        """Whether it pools over windows of a text."""
        return "/" in self.pooling

    @classmethod
    def parse(cls, text: str) -> BlockRef:
        """Read ``"encoder:layer:pooling"``; the encoder's name may hold colons itself."""
        parts = text.rsplit(":", 2)
        if len(parts) != 3 or not parts[1].isdecimal():
            raise ConfigError(f"{text!r} is not a block. Write it as encoder:layer:pooling.")
        if text in (str(LEXICAL_BLOCK), str(COLUMNS_BLOCK)):
            return cls(parts[0], 0, parts[2])
        split_pooling(parts[2])
        return cls(parts[0], int(parts[1]), parts[2])


LEXICAL_BLOCK = BlockRef("lexical", 0, "tfidf")
"""The one block of the lexical encoder, which reads words instead of a language model."""

COLUMNS_BLOCK = BlockRef("columns", 0, "table")
"""The one block of the columns of a table beside its texts."""

NOT_MODELS = {LEXICAL_BLOCK.encoder, COLUMNS_BLOCK.encoder}
"""Encoders without a language model, which have no layers."""


def highest_layers(blocks: Iterable[BlockRef]) -> dict[str, int]:
    """The highest layer of each encoder in use, by its name: up to there it is read."""
    highest: dict[str, int] = {}
    for block in blocks:
        highest[block.encoder] = max(block.layer, highest.get(block.encoder, 0))
    return highest


@dataclass(frozen=True, repr=False)
class BlockScore:
    """How well one block predicts the labels, by cross-validation on the rows it was given.

    ``loss`` is the mean squared error of the one-hot targets (for the logistic scorer the log
    loss); ``accuracy_se`` and ``loss_se`` are standard errors over rows; ``penalty`` is the
    ridge penalty (or inverse C) chosen.
    """

    block: BlockRef
    accuracy: float
    accuracy_se: float
    macro_f1: float
    loss: float
    loss_se: float
    penalty: float

    def __str__(self) -> str:
        return (
            f"{self.block}: accuracy {self.accuracy:.3f} ± {self.accuracy_se:.3f}, loss "
            f"{self.loss:.4f}"
        )

    def __repr__(self) -> str:
        return f"BlockScore({self})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    def to_row(self) -> dict[str, Any]:
        """The same on one level: the block's encoder, layer and pooling, then the numbers."""
        values = self.to_dict()
        block: dict[str, Any] = values.pop("block")
        return {**block, **values}


@dataclass(frozen=True, repr=False)
class BlockScores:
    """The scores of all blocks, in the order they were given."""

    scores: tuple[BlockScore, ...]
    scorer: str

    def __iter__(self) -> Iterator[BlockScore]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def ranking(self) -> tuple[BlockScore, ...]:
        """Best first: by loss, ties to the lower layer (it is cheaper)."""
        return tuple(sorted(self.scores, key=lambda score: (score.loss, score.block.layer)))

    @property
    def best(self) -> BlockScore:
        """The score with the lowest loss."""
        return self.ranking[0]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order in which they were given."""
        return tuple(dict.fromkeys(score.block.encoder for score in self.scores))

    def last(self, encoder: str) -> BlockScore:
        """The last layer of an encoder, at its best pooling there."""
        own = self.of(encoder)
        highest = max(score.block.layer for score in own)
        return next(score for score in own.ranking if score.block.layer == highest)

    def __repr__(self) -> str:
        if not self.scores:
            return f"BlockScores(no blocks, by {self.scorer})"
        blocks = f"{len(self)} block{'s' if len(self) > 1 else ''}"
        return f"BlockScores({blocks} by {self.scorer}; best {self.best})"

    def _repr_html_(self) -> str:
        shown = self.ranking[:_SHOWN]
        which = f"the best {len(shown)} of " if len(shown) < len(self) else ""
        way = "leave-one-out" if self.scorer == "ridge" else "cross-validated"
        caption = f"{which}{len(self)} blocks by {way} {self.scorer}"
        return to_html(caption, [score.to_row() for score in shown])

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with a row for each block, in the order they were given.

        Raises
        ------
        MissingExtraError
            Without the package ``pandas``.
        """
        return to_frame([score.to_row() for score in self.scores], "block scores")

    def of(self, encoder: str, pooling: str | None = None) -> BlockScores:
        """Only the blocks of one encoder (and one pooling)."""
        kept = tuple(
            score
            for score in self.scores
            if score.block.encoder == encoder and pooling in (None, score.block.pooling)
        )
        return BlockScores(kept, self.scorer)


@dataclass(frozen=True)
class Selection:
    """Chosen blocks.

    ``support_`` marks each candidate as chosen or not, ``ranking_`` gives each candidate's place
    (1 for every chosen block, as in scikit-learn), ``gains_`` the drop in leave-one-out loss that
    each chosen block brought when it was added (the first one against the class frequencies).
    ``reason`` says why there was no finer choice, where labels are few.
    """

    blocks: tuple[BlockRef, ...]
    method: str
    support_: tuple[bool, ...]
    ranking_: tuple[int, ...]
    gains_: tuple[float, ...]
    reason: str = ""


def split_pooling(name: str) -> tuple[str, str | None]:
    """The poolings over tokens and over windows of a block's pooling such as ``"mean/max"``.

    Raises
    ------
    ConfigError
        For an unknown name.
    """
    over_tokens, slash, over_windows = name.partition("/")
    check_choice(over_tokens, POOLINGS, "pooling")
    if slash:
        check_choice(over_windows, WINDOW_POOLINGS, "pooling over windows")
    return over_tokens, over_windows if slash else None


def resolve_poolings(
    poolings: str | Iterable[str], known: Iterable[str] = POOLINGS, what: str = "pooling"
) -> tuple[str, ...]:
    """Check pooling names and drop repeats, keeping the order.

    Parameters
    ----------
    poolings : str or iterable of str
        Names of ``known``.
    known : iterable of str
        By default `layerfuse.pooling.POOLINGS`.
    what : str
        What they are names of.

    Returns
    -------
    tuple of str

    Raises
    ------
    ConfigError
        For an unknown name, or none at all.
    """
    names = (poolings,) if isinstance(poolings, str) else tuple(dict.fromkeys(poolings))
    for name in names:
        check_choice(name, known, what)
    if not names:
        raise ConfigError(f"No {what} was given. Choose from {', '.join(known)}.")
    return names


def resolve_layers(layers: Layers, n_layers: int, encoder: str = "the encoder") -> tuple[int, ...]:
    """Turn ``"all"``, one layer or several into sorted layer numbers from 0 to ``n_layers``.

    Negative numbers count from the end: -1 is ``n_layers``.

    Raises
    ------
    ConfigError
        For anything else, or a layer that the encoder does not have.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise ConfigError(f"layers={layers!r} is not 'all', a layer number or several.")
        return tuple(range(n_layers + 1))
    try:
        wanted = [operator.index(layers)]  # type: ignore[arg-type]
    except TypeError:
        try:
            wanted = [operator.index(layer) for layer in layers]  # type: ignore[union-attr]
        except TypeError as error:
            raise ConfigError(
                f"layers={layers!r} is not 'all', a layer number or several."
            ) from error
    for layer in wanted:
        if not -n_layers - 1 <= layer <= n_layers:
            raise ConfigError(
                f"{encoder} has no layer {layer}: its layers are 0 (embedding output) to "
                f"{n_layers} (last block), or -1 to {-n_layers - 1} counted from the end."
            )
    if not wanted:
        raise ConfigError("No layer was given. Use layers='all' or a list of layer numbers.")
    return tuple(sorted({layer % (n_layers + 1) for layer in wanted}))


Records = Sequence[Mapping[str, object]]


def to_frame(records: Records, what: str) -> pd.DataFrame:
    """A row for each record; ``what`` says in a message what the table is of.

    Raises
    ------
    MissingExtraError
        Without the package ``pandas``.
    """
    pandas = require("pandas", "pandas", f"A table of {what}")
    frame: pd.DataFrame = pandas.DataFrame.from_records(list(records))
    return frame


def to_html(caption: str, records: Records) -> str:
    """A plain table, everything in it escaped; numbers stand to the right."""
    names = list(records[0]) if records else []
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(_cell(record[name]) for name in names)}</tr>" for record in records
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td style="text-align: right">{shown}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"
