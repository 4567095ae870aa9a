"""Where rows come from: files, folders, URLs and Hugging Face datasets; their splits and parts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias
from urllib.parse import unquote

from layerfuse.data.columns import ReadOptions, Table, find_columns, split_names, to_split
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.data.readers import (
    STANDARD_INPUT,
    arrow_table,
    not_found,
    read_arrow,
    read_file,
    read_footer,
    read_texts,
    refuse_large,
    suffix_of,
    unsupported,
)
from layerfuse.errors import DataError, NotFoundError, require
from layerfuse.files import is_url
from layerfuse.objects import N_TRANSFERS, ObjectFolder, is_folder

_Reader: TypeAlias = Callable[[int | None], Iterator[Table]]  # of parts of so many rows, or of one
_Value: TypeAlias = str | int | None

_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_BATCH_ROWS = 10_000  # of a Hugging Face dataset that is read whole
_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")  # "05" is no number: its text would be lost


class HubDataset(Protocol):
    """A ``Dataset`` or an ``IterableDataset`` of the package datasets."""

    features: Any

    def with_format(self, kind: str | None = ..., /) -> Any:
        """The same rows, as Arrow tables for example."""


Source: TypeAlias = str | Path | HubDataset | Mapping[str, HubDataset]


@dataclass(frozen=True)
class TextStream:
    """A `TextDataset` that is read once, by the parts of each split in the order of its rows.

    Attributes
    ----------
    name : str
        Such as the name of its file without the suffix.
    splits : mapping of str to iterator of Split
        The parts of each split, by its name.
    columns : tuple of str
        Names of the table's columns.
    text_column : str
        The column of the texts.
    label_column : str or None
        The column of the labels, where it was read.
    """

    name: str
    splits: Mapping[str, Iterator[Split]]
    columns: tuple[str, ...]
    text_column: str
    label_column: str | None

    def read(self) -> TextDataset:
        """All parts of each split together; for a stream whose splits have one part each."""
        splits = {name: split for name, parts in self.splits.items() for split in parts}
        return TextDataset(self.name, splits, self.columns, self.text_column, self.label_column)


def stream_dataset(
    source: Source,
    part_rows: int | None,
    options: ReadOptions,
    test: Source | None = None,
    name: str = "dataset",
) -> TextStream:
    """Open a file, a folder, a URL, standard input (``"-"``) or Hugging Face datasets.

    Files are csv, tsv, jsonl (each also .gz) and parquet, and become the split ``"train"``. Folders
    hold ``{split}`` files or folders; else they are one split: partitioned tables, Arrow files of
    ``save_to_disk`` or a folder of texts for each class. All come in parts of at most ``part_rows``
    rows, or as one. Columns are found in the first part and must be the same in the others.

    Raises
    ------
    NotFoundError
        When a file or folder does not exist.
    DataError
        When it is not readable as texts (and labels); the message says where and what to do.
    """
    splits = _open(source, name, options)
    if test is not None:
        given = _open(test, "test", options)
        if len(given) > 1:
            raise DataError(f"{test} has the splits {', '.join(given)}. Give one as the test rows.")
        splits["test"] = next(iter(given.values()))
    if isinstance(source, str | Path):
        name = Path(source).expanduser().resolve().name
        name = name[: len(name) - len(suffix_of(name))]
    tables = {split: _read_parts(part_rows, *readers) for split, readers in splits.items()}
    return _stream(name, tables, options)


def _stream(name: str, tables: Mapping[str, Iterator[Table]], options: ReadOptions) -> TextStream:
    """The columns of texts and labels, found in the first table, of the tables of each split."""
    splits: dict[str, Iterator[Split]] = {}
    text, label = "", options.label_column
    columns: tuple[str, ...] = ()
    for split, parts in tables.items():
        first = next(parts)
        text, label = find_columns(first, options)
        splits[split] = _to_splits(chain([first], parts), text, label, options)
        options = replace(options, text_column=text, label_column=label)
        columns = first.names
    return TextStream(name, splits, columns, text, label)


def _to_splits(
    tables: Iterable[Table], text: str, label: str | None, options: ReadOptions
) -> Iterator[Split]:
    """The parts of a split; a DataError behind the last where no row of any has a label."""
    labeled, where = label is None, ""
    for table in tables:
        split = to_split(table, text, label, options)
        labeled |= len(split) > 0
        where = table.where
        yield split
    if not labeled:
        raise DataError(
            f"{where}: column {label!r} has no value in any row. Fill in the labels, or choose "
            "another --label-column (label_column= in Python)."
        )


def _open(source: Source, name: str, options: ReadOptions) -> dict[str, list[_Reader]]:
    """Readers of the files of each split, train first; ``name`` is that of a Hub dataset."""
    if not isinstance(source, str | Path):
        splits = source if isinstance(source, Mapping) else {"train": source}
        return _labeled_splits(name, splits, options)
    if str(source) == STANDARD_INPUT or (is_url(source) and not is_folder(str(source))):
        return {"train": [partial(read_file, str(source))]}
    place = str(source) if is_url(source) else Path(source).expanduser()
    if isinstance(place, Path) and place.suffix and not place.is_dir():
        return {"train": [partial(read_file, place)]}
    return _Folder.at(place).splits()


def _read_parts(part_rows: int | None, *readers: _Reader) -> Iterator[Table]:
    """The rows of several files, in parts of so many rows at most, or as one.

    Rows are counted on from one file to the next; small files share a part.
    """
    waiting: list[Table] = []
    names: dict[str, None] = {}  # those of any row so far
    first, start, n_bytes = None, 0, 0
    for read in readers:
        for table in read(part_rows):
            first = first or table
            names |= dict.fromkeys(table.names)
            if table.ragged:
                table = replace(table, names=tuple(names))
            elif table.names != first.names:
                raise DataError(
                    f"{table.where} has the columns {', '.join(table.names)}, but {first.where} "
                    f"has {', '.join(first.names)}. Parts of a split need the same columns."
                )
            if part_rows is None:
                n_bytes += table.n_bytes
                refuse_large(_span(first, table), start + table.n_rows, n_bytes)
            elif waiting and start + table.n_rows - waiting[0].first_row > part_rows:
                yield _join(waiting)
                waiting = []
            waiting.append(replace(table, first_row=start))
            start += table.n_rows
    yield _join(waiting)


def _join(tables: Sequence[Table]) -> Table:
    """The rows of several tables one after another."""
    if len(tables) == 1:
        return tables[0]
    return replace(
        tables[0],
        where=_span(tables[0], tables[-1]),
        names=tuple(dict.fromkeys(chain.from_iterable(table.names for table in tables))),
        column=lambda name: list(chain.from_iterable(_column(own, {}, name) for own in tables)),
        n_rows=sum(table.n_rows for table in tables),
        types=_joint_types([table.types for table in tables]),
    )


def _joint_types(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each column the type that holds the values of all tables, where there is one."""
    import pyarrow

    joint = {}
    for name in dict.fromkeys(chain.from_iterable(found)):
        own = [pyarrow.schema([(name, types[name])]) for types in found if name in types]
        with suppress(pyarrow.ArrowException):
            joint[name] = pyarrow.unify_schemas(own, promote_options="permissive").types[0]
    return joint


def _span(first: Table, last: Table) -> str:
    return first.where if first.where == last.where else f"{first.where} to {last.where}"


@dataclass(frozen=True)
class _Folder:
    """A folder, here or at a URL, and the bytes of each file below it, by its name.

    Hidden ones, whose name or folder begins with a point or an underscore, are left out.
    """

    place: Path | str
    sizes: Mapping[str, int]

    @classmethod
    def at(cls, place: Path | str) -> _Folder:
        if isinstance(place, str):
            sizes = ObjectFolder(place).sizes()
        elif place.is_dir():
            files = list(_walk(place))
            sizes = {
                file.relative_to(place).as_posix(): file.stat().st_size
                for file in files
                if file.is_file()
            }
        else:
            raise unsupported(place) if place.exists() else not_found(place)
        shown = (name for name in sizes if not re.search("(^|/)[._]", name))
        return cls(place, {name: sizes[name] for name in sorted(shown)})

    def inner(self) -> dict[str, _Folder]:
        """The folders in it, in the order of their names."""
        found: dict[str, dict[str, int]] = {}
        for name, size in self.sizes.items():
            first, _, rest = name.partition("/")
            if rest:
                found.setdefault(first, {})[rest] = size
        return {name: _Folder(self._at(name), found[name]) for name in sorted(found)}

    def splits(self) -> dict[str, list[_Reader]]:
        """Readers of the files (or the folder) of each split, train first."""
        inner = self.inner()
        places = [own for name, own in inner.items() if "=" not in name]
        for some in ([self], [inner[name] for name in inner if name == "data"], places):
            found = {own.place: splits for own in some if (splits := own._named_splits())}
            if len(found) > 1:
                shown = ", ".join(Path(place).name for place in found)
                raise DataError(
                    f"{self.place} holds several datasets: {shown}. Give the folder of one."
                )
            parts = [name for name in inner if "=" in name and not name.startswith("split=")]
            if found and some == [self] and parts:
                raise DataError(
                    f"{self.place} holds the split {next(iter(found[self.place]))!r} beside "
                    f"partitions such as {parts[0]}. Put those into a folder called train."
                )
            if found:
                return next(iter(found.values()))
        if whole := self._reader():
            return {"train": [whole]}
        there = list(dict.fromkeys(name.partition("/")[0] for name in self.sizes))
        raise DataError(
            f"{self.place} holds no split files (it has: {', '.join(there[:10]) or 'nothing'}).\n"
            "Name them train.csv and test.csv (or .tsv, .jsonl, .jsonl.gz, .parquet), put the "
            "files of one table into folders such as year=2024, or give one file instead of the "
            "folder."
        )

    def _named_splits(self) -> dict[str, list[_Reader]]:
        """Files such as train.csv and train-00000-of-00002.parquet, and folders that hold a split.

        Such a folder is called train or split=train.
        """
        files = {name: partial(read_file, self._at(name)) for name in self.sizes if suffix_of(name)}
        entries = {**dict.fromkeys(files), **self.inner()}
        splits: dict[str, list[_Reader]] = {}
        for split in _SPLITS:
            found: dict[str, tuple[_Reader, int]] = {}
            for name, folder in entries.items():
                stem = name.removesuffix(suffix_of(name))  # also of folders: Spark's have one
                shard = re.fullmatch(rf"{split}(?:-\d+-of-0*(\d+))?|split={split}", stem)
                reader = shard and (folder._reader() if folder else files[name])
                if shard and reader:
                    found[name] = reader, int(shard[1] or 1)
            counts = {count for _, count in found.values()}
            if counts and counts != {len(found)}:
                what = f"{len(found)} of {max(counts)} files"
                raise DataError(
                    f"{self.place} has {what if max(counts) > 1 else 'more than one file'} for "
                    f"the split {split!r}: {', '.join(sorted(found)[:5])}. Keep one, or all of "
                    "its parts."
                )
            if found:
                splits[split] = [found[name][0] for name in sorted(found)]
        return splits

    def _reader(self) -> _Reader | None:
        """A reader of all that is in it as one table, if there is something to read."""
        classes = {
            name: [own._at(file) for file in own.sizes if re.fullmatch(r"[^/]*\.txt", file)]
            for name, own in self.inner().items()
        }
        classes = {name: files for name, files in classes.items() if files}
        if len(classes) > 1:
            return partial(read_texts, str(self.place), classes)
        arrow = [self._at(name) for name in self.sizes if re.fullmatch(r"[^/]*\.arrow", name)]
        if arrow:
            readers = [partial(read_arrow, file) for file in arrow]
            return lambda part_rows: _read_parts(part_rows, *readers)
        names = [name for name, size in self.sizes.items() if size and suffix_of(name)]
        kinds = {suffix_of(name).removesuffix(".gz").replace("ndjson", "jsonl") for name in names}
        partitioned = any("=" in name for name in names)
        if len(kinds) > 1 and partitioned:
            raise DataError(
                f"{self.place} holds files of several formats ({', '.join(sorted(kinds))}) in one "
                "table. Keep those of one."
            )
        if len(kinds) != 1 or not (".parquet" in kinds or partitioned):
            return None
        parts = {part for name in names for part in name.split("/")}
        plain = (part for part in parts if "=" not in part or part.startswith("split="))
        words = {found[0].casefold() for part in plain if (found := _SPLIT.search(part))}
        if len(words) > 1:
            raise DataError(
                f"{self.place} holds files of several splits ({', '.join(sorted(words))}). Put "
                f"those of each into a folder: {self.place}/train and {self.place}/test."
            )
        return partial(_read_partitions, [(name, self._at(name)) for name in names])

    def _at(self, name: str) -> Path | str:
        if isinstance(self.place, Path):
            return self.place / name
        return f"{self.place.rstrip('/')}/{name}"


def _walk(place: Path) -> Iterator[Path]:
    """The files below a folder, and those that links lead to, but for links to folders around."""
    for root, folders, names in os.walk(place, onerror=_refuse, followlinks=True):
        yield from (Path(root, name) for name in names)
        real = Path(root).resolve()
        folders[:] = [
            name
            for name in folders
            if not (own := Path(root, name)).is_symlink() or not real.is_relative_to(own.resolve())
        ]


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _read_partitions(
    files: Sequence[tuple[str, Path | str]], part_rows: int | None
) -> Iterator[Table]:
    """Tables with columns of what the names of their folders say, such as ``year=2024``."""
    names, places = zip(*files, strict=True)
    columns = _columns_of(places) if names[0].lower().endswith(".parquet") else ()
    pairs = zip(places, _keys_of(names), strict=True)
    readers = [partial(_read_keyed, columns, file, keys) for file, keys in pairs]
    return _read_parts(part_rows, *readers)


def _read_keyed(
    columns: Sequence[str], file: Path | str, keys: Mapping[str, _Value], part_rows: int | None
) -> Iterator[Table]:
    """A file's rows with all ``columns`` of its neighbors, and its ``keys``."""
    for table in read_file(file, part_rows):
        names = tuple(dict.fromkeys((*columns, *table.names, *keys)))
        column = partial(_column, table, keys)
        yield replace(table, names=names, column=column, keys=tuple(keys))


def _column(table: Table, keys: Mapping[str, _Value], name: str) -> Sequence[Any]:
    """A column of the file where it has it, else the value that its folder names, else nulls."""
    expected = keys.get(name)
    if name not in table.names:
        return [expected] * table.n_rows
    values = table.column(name)
    if expected is None:
        return values
    for value in values:
        if _differs(value, expected):
            raise DataError(
                f"{table.where}: column {name!r} holds {value!r}, but its folder is named "
                f"{name}={expected}. Rename the column or the folder."
            )
    return [expected if value is None else value for value in values]


def _differs(value: object, expected: str | int) -> bool:
    """Whether a cell plainly says something else than its folder; csv files hold strings only."""
    if isinstance(expected, int) and isinstance(value, str | int | float):
        try:
            return float(value) != expected
        except ValueError:
            return bool(value)  # an empty cell says nothing
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    return isinstance(value, str) and bool(value) and value != str(expected)


def _keys_of(names: Sequence[str]) -> list[dict[str, _Value]]:
    """What folders of the form ``key=value`` say of each file; whole numbers where all are."""
    found = []
    for name in names:
        pairs = [part.partition("=") for part in name.split("/")[:-1] if "=" in part]
        found.append({_decoded(key): _decoded(value) for key, _, value in pairs})
        if len(found[-1]) < len(pairs):
            raise DataError(f"{name} names a key twice in its folders. Rename one of them.")
    keys = dict.fromkeys(chain.from_iterable(found))
    whole = {key: all(_WHOLE.fullmatch(own.get(key) or "0") for own in found) for key in keys}
    return [
        {
            key: (int(text) if whole[key] else text) if (text := own.get(key)) else None
            for key in keys
        }
        for own in found
    ]


def _decoded(text: str) -> str:
    # what is no UTF-8 becomes surrogates, which are refused where the value is read
    return "" if text == _NULL else unquote(text, errors="surrogateescape")


def _columns_of(files: Sequence[Path | str]) -> tuple[str, ...]:
    """The columns that any of the parquet files has; a DataError where two are of other types."""
    import pyarrow

    known: dict[str, tuple[Any, Path | str]] = {}
    with ThreadPoolExecutor(N_TRANSFERS) as pool, ExitStack() as ended:
        ended.callback(pool.shutdown, wait=False, cancel_futures=True)  # an error waits for none
        for file, schema in zip(files, pool.map(read_footer, files), strict=True):
            for field in schema:
                kind = field.type
                kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
                own = pyarrow.schema([(field.name, kind)])
                before, where = known.setdefault(field.name, (own, file))
                if before.equals(own):
                    continue
                try:
                    joint = pyarrow.unify_schemas([before, own], promote_options="permissive")
                except pyarrow.ArrowException as error:
                    raise DataError(
                        f"{file}: column {field.name!r} is of type {kind}, but in {where} of type "
                        f"{before.types[0]}. Write both files with one type."
                    ) from error
                known[field.name] = joint, where
    return tuple(known)


def load_hub(repo_id: str, config: str | None) -> Mapping[str, HubDataset]:
    """The splits of a dataset of the Hub.

    Raises
    ------
    MissingExtraError
        Without the package ``datasets``.
    NotFoundError
        When it could not be downloaded.
    """
    datasets = require("datasets", "hub", f"Reading {repo_id!r} from the Hugging Face Hub")
    try:
        loaded: Mapping[str, HubDataset] = datasets.load_dataset(repo_id, config)
    except Exception as error:  # the package raises its own, the HTTP client's and OS errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFoundError(
            f"The dataset {repo_id!r} could not be downloaded from the Hub: {reason}\n"
            "Check its name (hub:owner/name, or hub:owner/name:config) and the connection, or "
            "give a file."
        ) from error
    return loaded


def _labeled_splits(
    name: str, splits: Mapping[str, HubDataset], options: ReadOptions
) -> dict[str, list[_Reader]]:
    """Readers of Hugging Face datasets, but for those whose labels are withheld.

    Those are all -1, as in GLUE's test sets. An ``IterableDataset`` is not looked at beforehand.
    """
    found: dict[str, list[_Reader]] = {}
    for split, dataset in splits.items():
        if not hasattr(dataset, "with_format"):
            raise DataError(
                f"Got a {type(dataset).__name__} where the name, path or URL of a dataset is "
                "expected, or a Dataset or IterableDataset of the package datasets."
            )
        if (getattr(dataset, "format", None) or {}).get("type") == "custom":
            raise DataError(
                f"{name} ({split}) has a transform (with_transform, set_transform), which is not "
                "applied when rows are read as a table. Use map instead."
            )
        read = partial(_read_hub, f"{name} ({split})", dataset)
        if hasattr(dataset, "__len__"):
            text, label = find_columns(first := next(read(_BATCH_ROWS)), options)
            options = replace(options, text_column=text, label_column=label)
            if label is not None:
                own = split_names(first.names, label)[0]
                if all(value is None for table in read(None) for value in table.column(own)):
                    continue
        found[split] = [read]
    if not found:
        raise DataError(f"{name} has no split with labels. Choose another --label-column.")
    return found


def _read_hub(where: str, dataset: HubDataset, part_rows: int | None) -> Iterator[Table]:
    """The rows of a Hugging Face dataset, class names in place of class numbers."""
    size = part_rows or _BATCH_ROWS
    if dataset.features is not None:
        batches = dataset.with_format("arrow").iter(size)
        tables: Iterator[Table] = (arrow_table(where, batch) for batch in batches)
    else:  # of an IterableDataset whose types nobody knows: Arrow would guess some in each batch
        tables = _guessed(where, dataset.with_format(None).iter(size))
    first = next(tables, None)
    if first is None:
        raise DataError(f"{where} has no rows. Give a dataset with at least one text.")
    yield from chain([first], tables)


def _guessed(where: str, batches: Iterable[Mapping[str, Sequence[Any]]]) -> Iterator[Table]:
    """Tables with the columns of all batches so far; one may lack some, and has nulls there."""
    names: tuple[str, ...] = ()
    for batch in batches:
        names = tuple(dict.fromkeys((*names, *batch)))
        own = Table(where, tuple(batch), batch.__getitem__, len(next(iter(batch.values()))))
        yield replace(own, names=names, column=partial(_column, own, {}), ragged=True)
