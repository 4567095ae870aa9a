"""Settings of the commands: each option's name, type, default, help text and limits, written once.

A field's name is its key in a settings file (TOML) and, with dashes, its flag, unless `Parameter`
gives another one. cyclopts reads both; a command receives the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from layerfuse.cluster import RayCluster

# Those of the registries, which --help and completion must not import: they load torch.
POOLING_NAMES = ("mean", "cls", "last", "max", "weighted_mean", "mean_no_sink")
WINDOW_POOLING_NAMES = ("mean", "max", "first", "last")
HEAD_NAMES = ("ridge", "balanced_ridge", "logistic", "kernel", "mlp")
EXPORT_FORMATS = ("sentence-transformers", "onnx")
FUSION_NAMES = (
    *("concat", "sum", "mean", "hadamard", "matmul", "quaternion", "cooccurrence", "tensor"),
    *("scalar_mix", "gated", "bilinear", "voting", "stacking"),
)


def _commas(_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Comma-separated values, of all occurrences of an option."""
    return tuple(part.strip() for token in tokens for part in token.value.split(","))


def _percentages(_: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    values = []
    for part in _commas(_, tokens):
        try:
            values.append(float(part.removesuffix("%")))
        except ValueError as error:
            raise ValueError(f"{part!r} is not a percentage.") from error
    return tuple(values)


def _pairs(_: object, tokens: Sequence[Token]) -> dict[str, str]:
    """``NAME=VALUE`` of all occurrences of an option."""
    pairs: dict[str, str] = {}
    for token in tokens:
        name, equals, value = token.value.partition("=")
        if not equals:
            raise ValueError(f"{token.value!r} should be NAME=VALUE, with an encoder's name.")
        if name.strip() in pairs:
            raise ValueError(f"{name.strip()!r} is given twice. Give one value per encoder.")
        pairs[name.strip()] = value
    return pairs


def _layers(_: object, tokens: Sequence[Token]) -> str | tuple[int, ...]:
    text = ",".join(token.value for token in tokens)
    try:
        return text if text == "all" else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{text!r} should be 'all' or numbers such as 0,6,-1.") from error


def _poolings(_: object, tokens: Sequence[Token]) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """``mean,last`` for all encoders, or ``NAME=mean,last`` for each of some."""
    if not any("=" in token.value for token in tokens):
        return _commas(_, tokens)
    named: dict[str, tuple[str, ...]] = {}
    for token in tokens:
        for name, value in _pairs(_, [token]).items():
            named[name] = (*named.get(name, ()), *_commas(_, [token.evolve(value=value)]))
    return named


def _integer(_: object, tokens: Sequence[Token]) -> int:
    """An integer; cyclopts' own converter rounds 2.5."""
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError(f"{tokens[0].value!r} is not an integer.") from error


def option(text: str, *names: str, **more: Any) -> Parameter:
    """An option with help ``text``; ``names`` are its flags where they are not the field's."""
    return Parameter(names or None, help=text, **more)


def count(text: str, least: int = 1, most: int | None = None, **more: Any) -> Parameter:
    """An option with help ``text`` that takes an integer from ``least`` to ``most``."""
    return option(text, converter=_integer, validator=Number(gte=least, lte=most), **more)


_ENCODERS = Group.create_ordered("Encoders")
_SELECTION = Group.create_ordered("Selection and classifier")
_BUDGET = Group.create_ordered("Budget")
OUTPUT = Group.create_ordered("Output")
_ROWS = Group.create_ordered("Many rows")
_LISTEN = Group.create_ordered("Server")
_LIMITS = Group.create_ordered("Limits of requests")
_encoders = partial(option, group=_ENCODERS)
_choice = partial(option, group=_SELECTION)
_share = partial(option, group=_SELECTION, validator=Number(gt=0, lt=1))
_limit = partial(option, group=_BUDGET, validator=Number(gt=0))
# n_tokens=-1: an occurrence takes one value, and those of all go to the converter together.
_named = partial(option, converter=_pairs, accepts_keys=False, n_tokens=-1)
_at_most = partial(count, group=_LIMITS)
_once = partial(option, n_tokens=1, allow_repeating=False)

Data = Annotated[str, option("File, folder, URL, dataset name, or hub:owner/name.")]
TestFile = Annotated[str | None, option("File or folder with test rows.")]
TextColumn = Annotated[
    str | None, option("Column with the texts; several, such as subject,body, are joined.")
]
LabelColumn = Annotated[
    str | None, option("Column with the labels; several, such as art,law, hold 0 or 1.")
]
LabelSeparator = Annotated[
    str | None,
    option("Separator of several labels in a cell, such as ';' ('': cells are one label)."),
]
IdColumn = Annotated[str | None, option("Column that names the rows.")]
StripHtml = Annotated[bool, option("Strip HTML from the texts.", show_default=False)]
SettingsFile = Annotated[
    Path | None, option("TOML file with settings; options given here win.", "--config")
]
WriteReport = Annotated[
    bool, option("Write report.html into the run folder.", negative="--no-report")
]
KeepTexts = Annotated[
    bool, option("Leave texts out of everything that is written.", negative="--no-texts")
]
Bundle = Annotated[str | Path, option("Run folder or bundle, or the URL of one.")]
MovedEncoders = Annotated[
    Mapping[str, str],
    _named("NAME=PATH: new location of an encoder of the run (repeatable).", "--encoder", "-e"),
]
BlocksInUse = Annotated[
    tuple[str, ...] | None,
    _once(
        "Blocks in use, comma-separated, such as mpnet:8:mean (default: the best block).",
        converter=_commas,
        metavar="BLOCKS",
    ),
]
Shares = Annotated[
    tuple[float, ...],
    _once(
        "Training fractions in percent, comma-separated.",
        converter=_percentages,
        validator=Number(gt=0, lte=100),
        metavar="PERCENTAGES",
    ),
]
Device = Annotated[str, _encoders("Device: auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[
    str,
    _encoders(
        "Data type; int8 on CUDA and CPUs with VNNI, nf4 on CUDA.",
        choices=("auto", "float32", "bfloat16", "float16", "int8", "nf4"),
    ),
]
Store = Annotated[
    str | None, option("Folder or URL of the embedding cache (default: in the user's cache).")
]
_Fusion = Annotated[
    str,
    _choice(
        f"Fusion: auto (mostly concat), {', '.join(FUSION_NAMES)}; most also as NAME+residual."
    ),
]
_Head = Annotated[str, _choice("Head; auto searches.", choices=("auto", *HEAD_NAMES))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of commands that can read texts on many machines."""

    engine: Annotated[
        str,
        option(
            "Where texts are read: in this process, or on a Ray cluster.",
            choices=("local", "ray"),
            group=_ROWS,
        ),
    ] = "local"
    address: Annotated[
        str | None,
        option("Address of the Ray cluster (default: RAY_ADDRESS, or a new one).", group=_ROWS),
    ] = None
    workers: Annotated[
        int | None,
        count("Maximum number of Ray actors (default: one per CPU or GPU).", group=_ROWS),
    ] = None

    @property
    def cluster(self) -> RayCluster | None:
        """The cluster; None for this process."""
        return None if self.engine == "local" else RayCluster(self.address, self.workers)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StreamConfig(EngineConfig):
    """Settings of commands that go through rows part by part."""

    part_rows: Annotated[int, count("Rows per part.", group=_ROWS)] = 10_000


@Parameter(name="*")
@dataclass(frozen=True)
class PredictConfig:
    """Settings of ``predict``."""

    run: Bundle
    data: Annotated[
        str | None,
        option(
            "File, folder, URL, dataset name, or - (standard input).", allow_leading_hyphen=True
        ),
    ] = None
    _: KW_ONLY
    text: Annotated[
        tuple[str, ...],
        option("A text, in place of a file (repeatable).", allow_leading_hyphen=True),
    ] = ()
    text_column: TextColumn = None
    out: Annotated[
        str | None,
        option(
            "File or URL to write: csv, tsv, jsonl (or .gz) or parquet; - prints CSV.",
            allow_leading_hyphen=True,
        ),
    ] = None
    probabilities: Annotated[
        bool, option("Add the probability of every class.", show_default=False)
    ] = False
    explain: Annotated[
        bool,
        option("Add the nearest training texts (after fit --explain).", show_default=False),
    ] = False
    resume: Annotated[bool, option("Resume a stopped run from its finished parts.")] = False
    encoders: MovedEncoders = field(default_factory=dict)
    device: Device = "auto"
    stream: StreamConfig = StreamConfig()


@Parameter(name="*")
@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ``evaluate``."""

    run: Bundle
    data: Data
    _: KW_ONLY
    split: Annotated[str | None, option("Split (default: test if there is one).")] = None
    against: Annotated[
        str | Path | None, option("Run folder or bundle to compare with on the same rows.")
    ] = None
    text_column: TextColumn = None
    label_column: LabelColumn = None
    texts: KeepTexts = True
    encoders: MovedEncoders = field(default_factory=dict)
    device: Device = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class ExportConfig:
    """Settings of ``export``."""

    run: Bundle
    _: KW_ONLY
    format: Annotated[str, option("What to write.", choices=EXPORT_FORMATS)]
    out: Annotated[Path, option("Folder to create.")]
    data: Annotated[
        str | None, option("File with texts to compare on (default: the run's test rows).")
    ] = None
    text_column: TextColumn = None
    label_column: LabelColumn = None
    block: Annotated[
        str | None,
        option("One block alone, such as mpnet:8:mean, without the classifier.", metavar="BLOCK"),
    ] = None
    int8: Annotated[bool, option("Quantize the ONNX graph, and measure what it costs.")] = False
    encoders: MovedEncoders = field(default_factory=dict)


@Parameter(name="*")
@dataclass(frozen=True)
class ReadConfig:
    """Settings of commands that read a dataset with encoders: ``profile`` and ``compare``."""

    data: Data
    _: KW_ONLY
    text_column: TextColumn = None
    label_column: LabelColumn = None
    label_separator: LabelSeparator = None
    id_column: IdColumn = None
    group_column: Annotated[
        str | None, option("Column of groups, such as customers, that are held out together.")
    ] = None
    strip_html: StripHtml = False
    sample: Annotated[int | None, count("Rows per split, stratified (default: all).")] = None
    seed: Annotated[int, count("Random seed.", least=0, most=2**32 - 1)] = 0
    store: Store = None
    n_jobs: Annotated[
        int | None, count("Threads of all but the encoders (default: all cores).", least=-1)
    ] = None
    encoders: Annotated[
        tuple[str, ...],
        _encoders(
            "Name, model folder, .gguf file or Hub name; NAME=PATH renames (repeatable).",
            *("--encoder", "-e"),
        ),
    ] = ("minilm",)
    prompts: Annotated[
        Mapping[str, str],
        _named("Prompt NAME='... {text} ...' (repeatable).", "--prompt", group=_ENCODERS),
    ] = field(default_factory=dict)
    chat_prompts: Annotated[
        Mapping[str, str],
        _named("Chat question NAME='...' (repeatable).", "--chat-prompt", group=_ENCODERS),
    ] = field(default_factory=dict)
    layers: Annotated[
        str | tuple[int, ...],
        _once(
            "Candidate layers: all, or numbers such as 0,6,-1.",
            converter=_layers,
            allow_leading_hyphen=True,
            metavar="LAYERS",
            group=_ENCODERS,
        ),
    ] = "all"
    pooling: Annotated[
        str | Sequence[str] | Mapping[str, str | Sequence[str]],
        _encoders(
            f"Candidate poolings, comma-separated: {', '.join(POOLING_NAMES)}; NAME=... for one "
            "encoder (repeatable).",
            converter=_poolings,
            accepts_keys=False,
            n_tokens=-1,
            metavar="POOLINGS",
        ),
    ] = ("mean",)
    max_length: Annotated[
        int, count("Maximum tokens per text or window.", least=2, group=_ENCODERS)
    ] = 512
    windows: Annotated[
        tuple[str, ...] | None,
        _once(
            "Read longer texts in windows; candidate poolings over them, "
            f"comma-separated: {', '.join(WINDOW_POOLING_NAMES)} (default: truncate).",
            converter=_commas,
            metavar="POOLINGS",
            group=_ENCODERS,
        ),
    ] = None
    max_windows: Annotated[int, count("Maximum windows per text.", group=_ENCODERS)] = 64
    device: Device = "auto"
    dtype: Dtype = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class ExtractConfig(StreamConfig, ReadConfig):
    """Settings of ``extract``; encoders take all cores."""

    n_jobs: Annotated[int | None, Parameter(parse=False)] = None
    out: Annotated[
        Path | None, option("File for all blocks (npz or parquet), beside the cache.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class CurveConfig(ReadConfig):
    """Settings of ``curve``."""

    _: KW_ONLY
    test: TestFile = None
    selection: Annotated[
        str,
        _choice(
            "Block selection; auto: greedy, with few labels the upper layers.",
            choices=("auto", "greedy", "upper", "top_k", "best", "last"),
        ),
    ] = "auto"
    max_blocks: Annotated[int, count("Maximum number of blocks.", group=_SELECTION)] = 5
    fusion: _Fusion = "concat"
    head: _Head = "ridge"
    class_weight: Annotated[
        str | None,
        _choice("'balanced': weight classes by 1/sqrt(frequency).", choices=("balanced",)),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class FitConfig(EngineConfig, CurveConfig):
    """Settings of ``fit``; see `LayerFusionClassifier` for most fields."""

    _: KW_ONLY
    fusion: _Fusion = "auto"
    head: _Head = "auto"
    lexical: Annotated[bool, _choice("Also try words (TF-IDF) as a block.", show_default=False)] = (
        False
    )
    columns: Annotated[
        tuple[str, ...],
        _choice(
            "Columns of numbers, dates or categories to read beside the texts, comma-separated.",
            converter=_commas,
            n_tokens=1,
        ),
    ] = ()
    fragments: Annotated[
        str,
        _choice(
            "Training texts that are contained in longer ones, where most are.",
            choices=("drop", "keep"),
        ),
    ] = "drop"
    calibration: Annotated[
        str, _choice("Probability calibration.", choices=("temperature", "none"))
    ] = "temperature"
    target_accuracy: Annotated[
        float | None,
        _share("Abstain so that this share (0 to 1) of the other predictions is correct."),
    ] = None
    coverage: Annotated[
        float | None,
        _share("Predict label sets that contain the true label for this share (0 to 1) of texts."),
    ] = None
    cv: Annotated[int, count("Folds of the nested resampling.", least=2, group=_SELECTION)] = 5
    seeds: Annotated[
        int, count("Fit with this many seeds, and report the spread.", group=_SELECTION)
    ] = 1
    max_dims: Annotated[int | None, count("Maximum fused dimensions.", group=_BUDGET)] = None
    max_ms: Annotated[float | None, _limit("Maximum latency per text (ms).")] = None
    max_parameters: Annotated[
        int | None, count("Maximum number of parameters computed.", group=_BUDGET)
    ] = None
    max_memory_mb: Annotated[float | None, _limit("Maximum weight memory (MB).")] = None
    out: Annotated[str | None, option("Run folder or URL to create (default: runs/NAME-TIME).")] = (
        None
    )
    report: WriteReport = True
    accept_advice: Annotated[
        bool,
        option(
            "Save the single block that the verdict finds simpler and no worse, if there is one.",
            show_default=False,
        ),
    ] = False
    texts: KeepTexts = True
    explain: Annotated[
        bool,
        option("Keep training texts in the bundle, for predict --explain.", show_default=False),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True)
class ServeConfig:
    """Settings of ``serve``."""

    runs: Annotated[
        tuple[str, ...], option("Run folders or bundles; NAME=RUN serves one as NAME.", "RUNS")
    ]
    _: KW_ONLY
    host: Annotated[str, option("Address to listen on; 0.0.0.0 for all.", group=_LISTEN)] = (
        "127.0.0.1"
    )
    port: Annotated[int, count("Port.", least=0, most=65535, group=_LISTEN)] = 8000
    encoders: MovedEncoders = field(default_factory=dict)
    device: Device = "auto"
    max_body: Annotated[int, _at_most("Maximum bytes per request.")] = 2_000_000
    max_texts: Annotated[int, _at_most("Maximum texts per request.")] = 256
    max_characters: Annotated[int, _at_most("Maximum characters per text.")] = 20_000
    max_queue: Annotated[int, _at_most("Maximum waiting texts; others are refused (429).")] = 1024
    max_batch: Annotated[int, _at_most("Maximum texts computed together.")] = 64
    deadline: Annotated[
        float,
        option(
            "Seconds until a request fails (504).",
            group=_LIMITS,
            validator=Number(gt=0, lte=86_400),
        ),
    ] = 30.0
    log_texts: Annotated[
        bool, option("Write the texts of requests into the log.", negative=(), group=_LISTEN)
    ] = False
