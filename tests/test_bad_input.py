"""A user's mistakes: exit code 2, a message that names fault and mend, nothing left behind."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

from commandline import Done, rows, run, start, succeed, write_csv, write_text
from families import save_model
from messages import check_message, read_messages

LONGEST = 5  # lines of a message
DATA = rows(30)


def table(data: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *data])
    return text.getvalue()


def parquet(columns: Sequence[Sequence[Any]], names: Sequence[str]) -> bytes:
    sink = io.BytesIO()
    arrays = [pa.array(values, None if values else pa.string()) for values in columns]
    pq.write_table(pa.Table.from_arrays(arrays, list(names)), sink)
    return sink.getvalue()


@dataclass(frozen=True)
class Mistake:
    """Arguments that are wrong in one way, the files they need, and parts of what is said.

    ``{models}`` in an argument is the folder of tiny models and ``{run}`` a run folder. ``fit``,
    ``profile`` and ``compare`` read ``train.csv``, which is there, with a tiny BERT called ``tiny``
    unless told otherwise.
    """

    name: str
    arguments: str
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)

    def command(self, models: Path, trained: Path) -> list[str]:
        words = self.arguments.split(" ")
        if words[0] in ("fit", "profile", "compare", "curve"):
            if len(words) == 1 or words[1].startswith("-"):
                words.insert(1, "train.csv")
            if "-e" not in words and "fit.toml" not in words:
                words += ["-e", "tiny={models}/bert"]
            if words[0] == "fit" and "--out" not in words:
                words += ["--out", "run"]
        # what stands for a space inside of an argument
        return [
            word.format(models=models, run=trained, text="{text}").replace("_␣", " ")
            for word in words
        ]


MISTAKES = [
    # files
    Mistake("missing file", "fit trian.csv", ("no file 'trian.csv'", "Did you mean 'train.csv'?")),
    Mistake("missing folder", "fit no/x.csv", ("There is no no/x.csv", "does not exist")),
    Mistake(
        "unknown dataset", "fit bbcnews", ("no dataset or file 'bbcnews'", "mean 'bbc-news'?")
    ),
    Mistake("unknown dataset to pull", "datasets pull r53", ("dataset 'r53'", "mean 'r52'?")),
    Mistake("unknown encoder to pull", "models pull mini-lm", ("'mini-lm'", "mean 'minilm'?")),
    Mistake(
        "unknown extension", "fit x.xlsx", ("x.xlsx", "Convert it to one of: .csv"), {"x.xlsx": "x"}
    ),
    Mistake("empty file", "fit x.csv", ("x.csv is empty", "at least one text"), {"x.csv": ""}),
    Mistake(
        "header only", "fit x.csv", ("a header line but no rows",), {"x.csv": "text,label\n"}
    ),
    Mistake(
        "no header", "fit x.csv", ("no header line", "'text,label'"),
        {"x.csv": table(DATA[1:], DATA[0])},
    ),
    Mistake(
        "not UTF-8", "fit x.csv", ("not UTF-8", "line 2", "iconv -f WINDOWS-1252"),
        {"x.csv": "text,label\nschön,a\ngut,b\n".encode("latin-1")},
    ),
    Mistake(
        "damaged gzip", "fit x.csv.gz", ("cannot be unpacked as gzip", "again"),
        {"x.csv.gz": b"\x1f\x8b\x08\x00abc"},
    ),
    Mistake(
        "damaged parquet", "fit x.parquet", ("x.parquet cannot be read as parquet",),
        {"x.parquet": b"PAR1 and no more"},
    ),
    Mistake(
        "too many fields", "fit x.csv", ("line 3: 3 fields", "header has 2", "double quotes"),
        {"x.csv": "text,label\na,b\na,b,c\n"},
    ),
    Mistake(
        "JSON that is none", "fit x.jsonl", ("line 2 is not JSON", '{"text": "…"'),
        {"x.jsonl": '{"text": "a", "label": "b"}\ntext\n'},
    ),
    Mistake("folder without splits", "fit data", ("no split files", "train.csv"), {"data/x": ""}),
    Mistake(
        "folder without train", "fit data", ("no train split", "train.csv"),
        {"data/test.csv": table(DATA)},
    ),
    Mistake(
        "gzip cut short", "fit x.csv.gz", ("cannot be unpacked as gzip", "ended before"),
        {"x.csv.gz": gzip.compress(table(DATA).encode())[:-30]},
    ),
    Mistake(
        "gzip by name only", "fit x.csv.gz", ("cannot be unpacked as gzip", "Not a gzipped file"),
        {"x.csv.gz": table(DATA)},
    ),
    Mistake(
        "too few fields", "fit x.csv", ("line 3: 1 field, where the header has 2", "double quotes"),
        {"x.csv": "text,label\na,b\nc\n"},
    ),
    Mistake(
        "open quote", "fit x.csv", ("line 2: the quotes do not close", "twice"),
        {"x.csv": 'text,label\n"abc,d\n'},
    ),
    Mistake(
        "UTF-16", "fit x.csv", ("not UTF-8", "It may be UTF-16", "iconv -f UTF-16"),
        {"x.csv": "text,label\nä,b\n".encode("utf-16")},
    ),
    Mistake(
        "two columns of one name", "fit x.csv", ("two columns named 'text'", "Rename"),
        {"x.csv": "text,text,label\na,b,c\n"},
    ),
    Mistake(
        "two columns of one name, parquet", "fit x.parquet", ("two columns named 'text'", "Rename"),
        {"x.parquet": parquet([["a"], ["b"], ["c"]], ["text", "text", "label"])},
    ),
    Mistake(
        "no rows, parquet", "fit x.parquet", ("has no rows", "at least one text"),
        {"x.parquet": parquet([[], []], ["text", "label"])},
    ),
    Mistake(
        "dates as labels", "fit x.parquet", ("holds date in row 0", "Convert", "--label-column"),
        {"x.parquet": parquet([["a", "b"], [date(2020, 1, 1)] * 2], ["text", "label"])},
    ),
    Mistake(
        "objects as labels", "fit x.jsonl", ("holds an object in row 0", "one class for each text"),
        {"x.jsonl": '{"text": "a", "label": {"b": 1}}\n'},
    ),
    Mistake(
        "lists of a single label", "fit x.jsonl", ("fewer than two labels", "one label a row"),
        {"x.jsonl": '{"text": "a", "label": ["b"]}\n'},
    ),
    Mistake(
        "NaN as every label", "fit x.jsonl", ("'label' has no value in any row", "Fill in"),
        {"x.jsonl": '{"text": "a", "label": NaN}\n{"text": "b", "label": null}\n'},
    ),
    Mistake("standard input", "evaluate {run} -", ("-", "evaluate --help")),
    # columns, texts and labels
    Mistake(
        "wrong text column", "fit --text-column txet",
        ("no column 'txet'", "Did you mean 'text'?", "text, label", "--text-column"),
    ),
    Mistake(
        "wrong label column", "fit --label-column lable",
        ("no column 'lable'", "Did you mean 'label'?", "--label-column"),
    ),
    Mistake(
        "no label column", "fit x.csv", ("no column that is plainly the label", "--label-column"),
        {"x.csv": table([(*row, "x") for row in DATA], ("text", "one", "two"))},
    ),
    Mistake(
        "texts only", "fit x.csv", ("no column that is plainly the label", "--label-column"),
        {"x.csv": table([row[:1] for row in DATA], ("text",))},
    ),
    Mistake(
        "one column for both", "fit --text-column text --label-column text", ("cannot be both",)
    ),
    Mistake(
        "wrong one of several text columns", "fit --text-column text,bdoy",
        ("no column 'bdoy'", "--text-column"),
    ),
    Mistake(
        "wrong id column", "fit --id-column nr", ("no column 'nr'", "--id-column"),
    ),
    Mistake(
        "wrong group column", "fit --group-column who", ("no column 'who'", "--group-column"),
    ),
    Mistake(
        "missing texts", "fit x.jsonl", ("'text' has no value in 1 of 2", "row 1", "remove"),
        {"x.jsonl": '{"text": "a", "label": "b"}\n{"text": null, "label": "c"}\n'},
    ),
    Mistake(
        "one class", "fit x.csv", ("All 30 rows have the same label 'a'", "at least two classes"),
        {"x.csv": table([(text, "a") for text, _ in DATA])},
    ),
    Mistake(
        "a label for each row", "fit x.csv",
        ("At least two classes need two rows", "30 of 30 have only one", "another label column"),
        {"x.csv": table([(text, f"id {i}") for i, (text, _) in enumerate(DATA)])},
    ),
    Mistake(
        "more classes than fit", "fit x.csv",
        ("5,001 classes, of at most 5,000", "column the label"),
        {"x.csv": table([(f"text {i}", f"id {i // 2}") for i in range(2 * 5001)])},
    ),
    Mistake(
        "a label for nearly each row, profile", "profile x.csv",
        ("At least two classes need two rows", "28 of 29 have only one", "Add rows"),
        {"x.csv": table([(text, str(max(i, 1))) for i, (text, _) in enumerate(DATA)])},
    ),
    Mistake(
        "unseen label in the test file", "fit --test x.csv",
        ("do not occur in training: other", "Add training rows"),
        {"x.csv": table([("a text", "other")])},
    ),
    Mistake("missing test file", "fit --test tset.csv", ("no file 'tset.csv'",)),
    # encoders
    Mistake(
        "unknown encoder", "fit -e minlm", ("Unknown encoder 'minlm'", "Did you mean 'minilm'?")
    ),
    Mistake(
        "missing model folder", "fit -e ./bret", ("Unknown encoder './bret'", "model folder")
    ),
    Mistake(
        "folder without config.json", "fit -e empty", ("no config.json", "model.safetensors"),
        {"empty/readme": ""},
    ),
    Mistake(
        "pickled weights only", "fit -e {models}/pickled",
        ("no .safetensors weights", "can run code", "Convert it"),
    ),
    Mistake("image model", "fit -e {models}/vit", ("vit", "not a text model")),
    Mistake("encoder without a name", "fit -e _␣", ("name is empty", "such as minilm")),
    Mistake(
        "sizes that no tensor has", "fit -e tiny={models}/huge",
        ("vocab_size=2000000000000", "too few or too small", "Get it again"),
    ),
    Mistake("misspelt command of models", "models chek x", ("chek", '"check"?')),
    Mistake("model file", "fit -e train.csv", ("not a .gguf file", "folder")),
    Mistake(
        "two encoders of one name", "fit -e {models}/bert -e bert={models}/llama",
        ("Two encoders are called 'bert'", "other=PATH"),
    ),
    Mistake(
        "unknown encoder to check", "models check minlm", ("'minlm'", "Did you mean 'minilm'?")
    ),
    Mistake("image model to check", "models check {models}/vit", ("not a text model",)),
    # layers, poolings and choices
    Mistake("layer out of range", "fit --layers 0,9", ("layer 9", "-4", "3")),
    Mistake("layer not a number", "fit --layers one", ("--layers", "'one'", "such as 0,6,-1")),
    Mistake("no layer", "fit --layers ,", ("--layers", "','", "such as 0,6,-1")),
    Mistake("unknown pooling", "fit --pooling meen", ("'meen'", "Did you mean 'mean'?")),
    Mistake("unknown selection", "fit --selection gredy", ("--selection", "gredy", '"greedy"?')),
    Mistake(
        "unknown fusion", "fit --fusion hadamart", ("'hadamart'", "Did you mean 'hadamard'?")
    ),
    Mistake("no residual form", "fit --fusion voting+residual", ("no residual form", "voting")),
    Mistake("unknown head", "fit --head logstic", ("--head", "logstic", '"logistic"?')),
    Mistake(
        "unknown calibration", "fit --calibration temprature",
        ("--calibration", "temprature", '"temperature"?'),
    ),
    Mistake("unknown scorer", "profile --scorer ridgy", ("--scorer", "ridgy", '"ridge"?')),
    Mistake(
        "one encoder to compare", "compare", ("takes two, and there is only tiny", "--pairs blocks")
    ),
    Mistake("unknown pairs", "compare --pairs block", ("--pairs", "block", '"blocks"?')),
    Mistake(
        "unknown block to add to", "compare --pairs blocks --to tiny:9:mean",
        ("--to names tiny:9:mean", "4 blocks", "Did you mean 'tiny:"),
    ),
    Mistake(
        "unknown encoder to add to", "compare --pairs blocks --to tiny:1:mean,bert:1:mean",
        ("--to names bert:1:mean", "encoders: tiny"),
    ),
    Mistake(
        "no block to add to", "compare --to mpnet", ("'mpnet' is not a block", "as encoder:layer")
    ),
    Mistake(
        "unknown pooling to add to", "compare --to tiny:1:meen",
        ("'meen'", "Did you mean 'mean'?"),
    ),
    Mistake(
        "one block to compare", "compare --pairs blocks --layers 1", ("only one block", "at least")
    ),
    Mistake("unknown dtype", "fit --dtype float23", ("--dtype", "float23", '"float32"?')),
    Mistake("unknown device", "fit --device cpuu", ("'cpuu'", "Did you mean 'cpu'?")),
    Mistake(
        "unknown class weight", "fit --class-weight equal", ("--class-weight", "equal", "balanced")
    ),
    Mistake("cv of 1", "fit --cv 1", ("--cv", '"1"', ">= 2")),
    Mistake("no blocks", "fit --max-blocks 0", ("--max-blocks", '"0"', ">= 1")),
    Mistake("no dimensions", "fit --max-dims 0", ("--max-dims", '"0"', ">= 1")),
    Mistake("negative time", "fit --max-ms -1", ("--max-ms", "-1", "> 0")),
    Mistake("no parameters", "fit --max-parameters 0", ("--max-parameters", '"0"', ">= 1")),
    Mistake("endless memory", "fit --max-memory-mb inf", ("memory_mb is inf", "--max-memory-mb")),
    Mistake("memory that is NaN", "fit --max-memory-mb nan", ("--max-memory-mb", "nan", "> 0")),
    Mistake("half a dimension", "fit --max-dims 1.5", ("--max-dims", "'1.5'", "integer")),
    Mistake(
        "fewer dimensions than a block has", "fit --max-dims 31",
        ("tiny:0:mean alone takes 32 dimensions of at most 31 (--max-dims)", "larger budget"),
    ),
    Mistake(
        "less memory than an embedding takes", "fit --max-memory-mb 0.001",
        ("The budget leaves no block: tiny:0:mean", "MB of weights of at most 0.001"),
    ),
    Mistake(
        "last layers over the budget", "fit --selection last --max-parameters 9000",
        ("The last layers exceed the budget", "parameters of at most 9,000", "selection='greedy'"),
    ),
    Mistake(
        "more last layers than blocks",
        "fit --selection last --max-blocks 1 -e {models}/bert -e {models}/llama",
        ("each of the 2 encoders", "max_blocks=1", "--max-blocks 2"),
    ),
    Mistake("demo of nothing", "demo --sample -1 --out d", ("--sample", "-1", ">= 1")),
    Mistake("no share", "curve train.csv --shares 0", ("--shares", "0.0", "> 0")),
    Mistake("a share in words", "curve train.csv --shares ten", ("--shares", "'ten'")),
    Mistake("no draws", "curve train.csv --repeats 0", ("--repeats", '"0"', ">= 1")),
    Mistake("sample of nothing", "fit --sample 0", ("--sample", '"0"', ">= 1")),
    Mistake("negative sample", "fit --sample -5", ("--sample", "-5", ">= 1")),
    Mistake("negative seed", "fit --seed -1", ("--seed", "-1", ">= 0")),
    Mistake("no tokens", "fit --max-length 0", ("--max-length", '"0"', ">= 2")),
    Mistake("not a number", "fit --cv five", ("--cv", "'five'", "integer")),
    Mistake("unknown option", "fit --laers 0", ("--laers", "--layers?")),
    Mistake("option given twice", "fit --cv 2 --cv 3", ("--cv", "more than once")),
    Mistake("layers given twice", "fit --layers 0 --layers 1", ("--layers", "more than once")),
    Mistake("option without a value", "fit --cv 3 --seed", ("--seed", "needs a value")),
    Mistake("one argument too many", "fit train.csv test.csv", ("'test.csv'",)),
    Mistake("unknown command", "fti x.csv", ('"fti"', '"fit"?')),
    Mistake("no data", "evaluate {run}", ("DATA", "evaluate --help")),
    # prompts
    Mistake(
        "prompt without {text}", "fit --prompt tiny=good?",
        ("'good?'", "must contain {text} exactly once"),
    ),
    Mistake(
        "prompt for nobody", "fit --prompt tinny={text}?",
        ("'tinny'", "encoders (tiny)", "Did you mean 'tiny'?"),
    ),
    Mistake("prompt without a name", "fit --prompt hello", ("--prompt", "'hello'", "NAME=")),
    Mistake(
        "two prompts for one", "fit --prompt tiny=a_␣{text} --prompt tiny=b_␣{text}",
        ("--prompt", "'tiny'", "twice"),
    ),
    Mistake(
        "chat without a chat template", "fit --chat-prompt tiny=good?",
        ("no chat template", "{text}"),
    ),
    Mistake(
        "prompt and chat prompt", "fit --prompt tiny={text}? --chat-prompt tiny=good?",
        ("both a prompt and a chat prompt", "choose one"),
    ),
    Mistake(
        "max-length under the prompt", "fit --max-length 5 --prompt tiny=a_␣b_␣c_␣d_␣{text}",
        ("prompt alone takes 6 of at most 5", "raise max_length"),
    ),
    # settings files
    Mistake("missing settings file", "fit --config no.toml", ("no settings file no.toml",)),
    Mistake(
        "settings that are not TOML", "fit --config fit.toml", ("fit.toml is not a TOML file",),
        {"fit.toml": "head: ridge\n"},
    ),
    Mistake(
        "unknown setting", "fit --config fit.toml",
        ("unknown setting 'poling'", "Did you mean 'pooling'?"), {"fit.toml": 'poling = "mean"\n'},
    ),
    Mistake(
        "setting of another command", "curve --config fit.toml",
        ("fit.toml", "'pairs'", "curve"), {"fit.toml": 'pairs = "blocks"\n'},
    ),
    Mistake(
        "settings that are a folder", "fit --config cfg", ("cfg cannot be read", "a TOML file"),
        {"cfg/x": ""},
    ),
    # folders
    Mistake("unwritable out", "fit --out /proc/x/run", ("/proc is not writable", "--out")),
    Mistake("unwritable store", "fit --store /proc/x", ("/proc is not writable", "--store")),
    Mistake(
        "predictions onto a device", "predict {run} train.csv --out /dev/null",
        ("a device or a pipe", "name of a file"),
    ),
    Mistake(
        "predictions of a profile as csv", "profile train.csv --predictions p.csv",
        ("p.csv", "--predictions", ".parquet"),
    ),
    Mistake(
        "run folder exists", "fit --out full", ("full exists already", "--out"), {"full/x": ""}
    ),
    Mistake("out below a file", "fit --out train.csv/run", ("train.csv", "not a folder", "--out")),
    Mistake(
        "store is a file", "fit --store train.csv", ("train.csv", "not a folder", "--store")
    ),
    Mistake("listed store is a file", "store ls --store train.csv", ("not a folder", "--store")),
    Mistake("no such store", "store ls --store no", ("There is no embedding cache no", "--store")),
    Mistake("demo onto another run", "demo --out full", ("full", "not a demo's folder", "--out"),
            {"full/report.json": '{"settings": {"data": "mine.csv", "encoders": ["minilm"]}}'}),
    Mistake("prune of what", "store prune", ("--encoder NAME", "--all")),
    Mistake("prune of all and of some", "store prune --all --encoder x", ("--all", "leave it out")),
    Mistake("prune of the future", "store prune --older-than -1", ("--older-than", "-1", ">= 0")),
    # saved classifiers
    Mistake("bundle missing", "predict no train.csv", ("no does not exist", "run folder")),
    Mistake("bundle is a file", "predict train.csv train.csv", ("not a folder", "run folder")),
    Mistake("folder without a bundle", "evaluate full train.csv", ("no bundle.json in full",),
            {"full/x": ""}),
    Mistake("predict on nothing", "predict {run} no.csv", ("no file 'no.csv'",)),
    Mistake(
        "predict without a text column", "predict {run} x.csv",
        ("no column 'text'", "one, two, three", "--text-column"),
        {"x.csv": table([("a", "b", "c")], ("one", "two", "three"))},
    ),
    Mistake(
        "predict on rows without a header", "predict {run} x.csv",
        ("no column 'text'", "If the file has no header", "'text,label'"),
        {"x.csv": table(DATA[1:], DATA[0])},
    ),
    Mistake(
        "predict on texts without a header", "predict {run} x.csv",
        ("no header", "a good text or so", "--text-column"),
        {"x.csv": "a good text or so\nanother\n"},
    ),
    Mistake(
        "unknown file of an encoder", "fit train.csv -e models/tiny/nothere.gguf",
        ("no model folder or .gguf file 'models/tiny/nothere.gguf'",),
    ),
    Mistake(
        "predictions below a file", "predict {run} train.csv --out train.csv/x.csv",
        ("train.csv is not a folder", "--out"),
    ),
    Mistake(
        "labels that are a quantity", "fit x.csv -e models/bert", ("a quantity", "label column"),
        {"x.csv": "text;label\n" + "".join(f"text {n};{n % 16},{n % 16}0\n"
                                           for n in range(18))},
    ),
    Mistake("a server asked for JSON", "serve {run} --json", ("no result", "--json")),
    Mistake("predictions onto a folder", "predict {run} train.csv --out full",
            ("full is a folder",), {"full/x": ""}),
    Mistake("predict on an unknown device", "predict {run} train.csv --device gpu", ("'gpu'",)),
    Mistake(
        "evaluate an unknown split", "evaluate {run} train.csv --split tset",
        ("no split 'tset'", "train"),
    ),
    Mistake(
        "evaluate unseen labels", "evaluate {run} x.csv", ("do not occur in training: other",),
        {"x.csv": table([("a text", "other"), ("a film", "news")])},
    ),
    Mistake(
        "evaluate labels in another case", "evaluate {run} x.csv",
        ("do not occur in training: News", "'News' and 'news' differ only in case"),
        {"x.csv": table([("a text", "News"), ("a film", "news")])},
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders, two good and four bad; ``huge`` asks for 256 TB."""
    folder = tmp_path_factory.mktemp("models")
    save_model("bert", folder / "bert")
    save_model("llama", folder / "llama")
    pickled = save_model("bert", folder / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    huge = save_model("bert", folder / "huge")
    weights = load_file(huge / "model.safetensors")
    gone = next(name for name in weights if "word_embeddings" in name)  # so that they are made
    weights.pop(gone)
    save_file(weights, huge / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((huge / "config.json").read_text(encoding="utf-8"))
    settings["vocab_size"] = 2_000_000_000_000
    (huge / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    mute = save_model("bert", folder / "mute")
    for path in mute.glob("*token*"):
        path.unlink()
    image = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=8, patch_size=4,
    )  # fmt: skip
    hf.ViTModel(image).save_pretrained(folder / "vit")
    return folder


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_csv(folder / "train.csv", DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFUSE_CACHE", str(folder / "cache"))
        quick = ("--head", "ridge", "--cv", 2)
        succeed("fit", data, "-e", f"tiny={models / 'bert'}", "--out", folder / "run", *quick)
    return folder / "run"


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs beside a sound train.csv, with a cache of its own."""
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
    write_csv(tmp_path / "here" / "train.csv", DATA)
    monkeypatch.chdir(tmp_path / "here")


def everything(folder: Path) -> dict[str, bytes | None]:
    """All paths below a folder, with the files' content."""
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def check_refused(act: Callable[[], Done], *says: str) -> str:
    """Exit code 2, a short message with these parts, nothing new or changed on the disk.

    Returns the message.
    """
    before = everything(Path.cwd())
    done = act()
    message = "\n".join(line for line in done.err.splitlines() if not line.startswith("· "))
    print(message)  # noqa: T201  # pytest shows it when a part is missing
    assert done.code == 2
    assert done.out == ""
    for part in says:
        assert part in message
    assert "Traceback" not in done.err
    assert 1 <= len(message.splitlines()) <= LONGEST
    assert everything(Path.cwd()) == before
    assert not list(Path.cwd().parent.rglob("*.tmp"))
    return message


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_explained(mistake: Mistake, models: Path, trained: Path):
    for name, content in mistake.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = check_refused(lambda: run(*mistake.command(models, trained)), *mistake.says)
    for place, name in ((models, "MODELS"), (trained, "RUN"), (Path.cwd(), "HERE")):
        found = found.replace(str(place), name)
    check_message(f"mistake: {mistake.name}", found)


def test_every_message_is_of_a_mistake():
    found = {name for name in read_messages() if name.startswith("mistake: ")}
    assert found == {f"mistake: {mistake.name}" for mistake in MISTAKES}


@pytest.mark.slow
def test_a_port_that_is_taken(trained: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_refused(lambda: run("serve", trained, "--port", port), str(port), "--port")


def test_a_model_folder_without_a_tokenizer(models: Path):
    command = ("fit", "train.csv", "-e", models / "mute", "--out", "run")
    check_refused(lambda: run(*command), "mute", "tokenizer")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(models: Path, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ("fit", "train.csv", "-e", models / "bert", "--device", device, "--out", "run")
    check_refused(lambda: run(*command), "no cuda device", "--device auto or cpu")


class TestDamagedBundles:
    """All that can be wrong with a bundle is tested where bundles are; here, how it is said."""

    @pytest.fixture
    def bundle(self, trained: Path, tmp_path: Path) -> Path:
        """A copy to spoil, outside of the folder that must stay as it is."""
        return Path(shutil.copytree(trained / "bundle", tmp_path / "bundle"))

    def test_tensors_cut_short(self, bundle: Path):
        path = bundle / "tensors.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        command = ("predict", bundle, "train.csv", "--out", "out.csv")
        check_refused(lambda: run(*command), "tensors.safetensors is damaged")

    def test_an_encoder_that_has_moved(self, bundle: Path):
        path = bundle / "bundle.json"
        value = json.loads(path.read_text(encoding="utf-8"))
        value["encoders"][0]["source"] = "/gone/bert"
        fields = {name: own for name, own in value.items() if name != "sha256"}
        tensors = (bundle / "tensors.safetensors").read_bytes()
        signed = json.dumps(fields, sort_keys=True).encode() + tensors
        value["sha256"] = hashlib.sha256(signed).hexdigest()
        path.write_text(json.dumps(value), encoding="utf-8")
        command = ("predict", bundle, "train.csv", "--out", "out.csv")
        check_refused(lambda: run(*command), "'/gone/bert'", "model folder")


class TestSettings:
    """Values of a settings file that have another type than they should."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ('max_blocks = "five"', ("max_blocks in fit.toml", "'five'", "integer")),
            ("cv = 2.5", ("cv in fit.toml", "'2.5'", "integer")),
            ("cv = 1", ("cv in fit.toml", '"1"', ">= 2")),
            ("layers = 'top'", ("layers in fit.toml", "'top'", "'all' or numbers")),
            ("layers = [0, 'one']", ("layers in fit.toml", "one", "'all' or numbers")),
            ("encoders = 3", ("'3'", "Unknown encoder")),
            ("pooling = [1]", ("pooling '1'",)),
            ("pooling = { tiny = 1 }", ("pooling '1'",)),
            ("prompts = 'good?'", ("prompts in fit.toml", "'good?'", "NAME=VALUE")),
            ("head = 1", ("head in fit.toml", '"1"', '"ridge"')),
            ("max_dims = 64.0", ("max_dims in fit.toml", "'64.0'", "integer")),
            ("max_ms = 'fast'", ("max_ms in fit.toml", "fast", "float")),
            ("max_memory_mb = true", ("max_memory_mb in fit.toml", "true", "float")),
            ("text_column = ['a', 'b']", ("text_column in fit.toml", "one value", "'a,b'")),
            ("sample = [20, 60]", ("sample in fit.toml takes one value, not 2",)),
            ("report = [true, false]", ("report in fit.toml takes one value",)),
            ("seed = { a = 1 }", ("seed in fit.toml takes one value",)),
            ("max_length = true", ("max_length in fit.toml", "'true'", "integer")),
        ],
    )
    def test_a_value_of_another_type(self, models: Path, line: str, says: tuple[str, ...]):
        write_text(Path("fit.toml"), line + "\n")
        encoder = () if line.startswith("encoders") else ("-e", f"tiny={models / 'bert'}")
        command = ("fit", "train.csv", "--config", "fit.toml", "--out", "run", *encoder)
        check_refused(lambda: run(*command), *says)


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_half_written_stays(models: Path, tmp_path: Path):
    """The shard of a run is larger than any file may be here."""
    write_csv(Path("train.csv"), rows(300))
    store = tmp_path / "store"
    command = ("fit", "train.csv", "-e", models / "bert", "--store", store, "--out", "run")

    def act() -> Done:
        process = start(*command, cwd=Path.cwd(), file_bytes=20_000)
        out, err = process.communicate(timeout=120)
        return Done(process.wait(), out, err)

    check_refused(act, "The disk has no room to write", "is kept; free some space")
    assert [path.name for path in store.rglob("*") if path.is_file()] == ["manifest.json"]
