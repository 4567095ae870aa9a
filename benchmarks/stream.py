"""`layerfuse predict` on tables of many short rows: peak memory by the number of rows, and the
output of a run that is killed ten times and goes on, against that of one that is not.

``python -m benchmarks.stream 2000000`` takes other numbers of rows. The encoder is a tiny random
one of one layer, so that reading costs little and what is measured is all else. With ``--encoder
minilm`` it is a named one, up to its last layer; texts are then often equal, as equal texts in one
part are read once, and the rate for different texts is measured on its own."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import save

SIZES = (20_000, 200_000, 2_000_000)
KILLS = 10
_WORDS = [f"w{number}" for number in range(500)]
_DEFINE = """
import sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from layerfuse import FrozenEncoder, LayerFusionClassifier
folder = Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(500))]
tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(504))), unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
).save_pretrained(folder / "tiny")
BertModel(BertConfig(
    vocab_size=504, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=64,
)).save_pretrained(folder / "tiny")
texts = [f"w{row % 2} w{row}" for row in range(400)]
name = sys.argv[2]
if name == "tiny":
    encoder = FrozenEncoder.from_pretrained(folder / "tiny", device="cpu", dtype="float32")
else:
    encoder = FrozenEncoder.from_pretrained(name, device="cpu", layers=-1)
options = {"store": None, "fusion": "concat", "head": "ridge", "cv": 2}
LayerFusionClassifier([encoder], **options).fit(texts, [row % 2 for row in range(400)]).save(
    folder / "bundle", text_column="text"
)
"""


def make_bundle(folder: Path, encoder: str) -> None:
    """A classifier on the tiny encoder, or on the last layer of a named one."""
    define = [sys.executable, "-c", _DEFINE, str(folder), encoder]
    subprocess.run(define, check=True, capture_output=True)


def write_rows(path: Path, count: int, *, often_equal: bool = False) -> None:
    """A CSV file of texts of two to six words, some of them equal, or one to two of 20 words."""
    draw = random.Random(0)  # noqa: S311  # not for secrets
    words, fewest, most = (_WORDS[:20], 1, 2) if often_equal else (_WORDS, 2, 6)
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        for row in range(count):
            file.write(f"{row},{' '.join(draw.choices(words, k=draw.randint(fewest, most)))}\n")


def run(sizes: Sequence[int] = SIZES, encoder: str = "tiny") -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    often_equal = encoder != "tiny"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bundle(folder, encoder)
        if often_equal:
            write_rows(folder / "rows.csv", sizes[0])
            results.append({"texts": "different", **_measure(folder, sizes[0])})
        for size in sizes:
            write_rows(folder / "rows.csv", size, often_equal=often_equal)
            texts = {"texts": "often equal"} if often_equal else {}
            results.append({**texts, **_measure(folder, size)})
        results.append({"rows": sizes[-1], **_kill(folder, sizes[-1] // 10_000)})
        print(json.dumps(results[-1]), flush=True)
    return results


def _measure(folder: Path, size: int) -> dict[str, Any]:
    """Peak memory and time of a process that predicts all rows."""
    (folder / "whole.csv").unlink(missing_ok=True)
    process, started = start(folder, "whole.csv"), time.perf_counter()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    assert status == 0, (folder / "log").read_text()
    found = {
        "rows": size,
        "peak_mb": usage.ru_maxrss / 1e3,
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }
    print(json.dumps(found), flush=True)
    return found


def start(folder: Path, out: str, *options: object) -> subprocess.Popen[bytes]:
    """Start to predict the rows of a folder."""
    command = [sys.executable, "-m", "layerfuse", "predict", folder / "bundle", folder / "rows.csv"]
    command += ["--out", folder / out, "--resume", *map(str, options)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stderr=log)


def _kill(folder: Path, n_parts: int) -> dict[str, Any]:
    """Kill a run at random moments, let it go on each time, and compare what it wrote."""
    draw = random.Random(1)  # noqa: S311  # not for secrets
    parts = folder / ".out.csv.parts"
    kept: dict[str, int] = {}
    n_changed = 0
    for _ in range(KILLS):
        process = start(folder, "out.csv")
        wanted = len(kept) + draw.randint(1, max(1, n_parts // (KILLS + 1)))
        while process.poll() is None and len(list(parts.glob("part.*"))) < wanted:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.wait()
        now = {path.name: path.stat().st_mtime_ns for path in parts.glob("part.*")}
        n_changed += sum(now.get(part) != written for part, written in kept.items())
        kept = now
        print(f"killed, {len(kept)} parts are there", flush=True)
    assert start(folder, "out.csv").wait() == 0, (folder / "log").read_text()
    is_equal = filecmp.cmp(folder / "whole.csv", folder / "out.csv", shallow=False)
    return {"kills": KILLS, "parts_written_again": n_changed, "is_equal": is_equal}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--encoder", default="tiny")
    asked = parser.parse_args()
    named = "" if asked.encoder == "tiny" else f"_{asked.encoder}"
    save(f"stream{named}", run(asked.sizes or SIZES, asked.encoder))
