"""Training the head on stored rows beyond the selection sample: peak memory and time of a process,
and of what comes before and after.

``python -m benchmarks.many_rows 200000 768`` takes another number of rows and dimensions, with
``logistic`` before them another head than ridge. The rows are synthetic and lie in a store; the
fusion is concatenation. The rows that are
evaluated and predicted are those of training: only time and memory are looked at."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.common import save

SHAPES = ((20_000, 768), (200_000, 768))
_FILL = """
import sys
from pathlib import Path
import numpy as np
from layerfuse.embeddings.shard import write_shard
from layerfuse.embeddings.store import text_hashes
folder, rows, dim = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = np.random.default_rng(0)
truth = draw.normal(size=(dim, 2)).astype("float32")
labels = np.empty(rows, int)
for start in range(0, rows, 10_000):  # as `layerfuse extract` leaves them
    part = range(start, min(start + 10_000, rows))
    X = draw.normal(size=(len(part), dim)).astype("float32")
    noisy = X @ truth + 20 * draw.normal(size=(len(part), 2))
    labels[start : start + len(part)] = noisy.argmax(axis=1)
    hashes = text_hashes(map(str, part))
    order = np.argsort(hashes)
    write_shard(folder, hashes[order], np.zeros(len(part), bool), {(1, "mean"): X[order]})
np.save(folder / "labels.npy", labels)
"""
_TRAIN = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from layerfuse.blocks import BlockRef
from layerfuse.embeddings.extraction import _EncoderBlocks
from layerfuse.embeddings.store import Section, text_hashes
from layerfuse.commands.output import encode
from layerfuse.embeddings.extraction import BlockView
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.model_selection import SearchSpace
from layerfuse.parallel import peak_mb
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets
stages = {}
@contextmanager
def stage(name):
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, started = peak_mb(), time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    stages[name] = {"seconds": seconds, "peak_mb_before": before, "peak_mb": peak_mb()}
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
targets = Targets.from_labels(np.load(folder / "labels.npy").tolist())
texts = list(map(str, range(rows)))
with stage("index"):
    hashes, first, back = np.unique(text_hashes(texts), return_index=True, return_inverse=True)
    section = Section(folder)
    section.refresh()
    ref = BlockRef("synthetic", 1, "mean")
    stored = _EncoderBlocks(None, texts, hashes, ((1, "mean"),), section, None)
    view = BlockView({ref: stored}, back)
    section.missing(hashes, stored.keys)
with stage("choose"):
    sample = np.arange(min(rows, 10_000))
    own = view.take(sample)
    probed = probe_blocks(own, targets[sample])
    space = SearchSpace("best", CostBudget(Budget(blocks=1), {}))
    training = TrainingSample(own, targets[sample], probed, space)
    training.search()
with stage("head"):
    model = training.fit(Plan((ref,), head=sys.argv[4]), view, targets)
with stage("evaluate"):
    proba = np.empty((rows, targets.space.n_outputs))
    for part_rows, part in view.parts(10_000):
        proba[part_rows] = model.predict_proba(part)
    targets.evaluate(proba)
del proba
with stage("predict"), open(folder / "labels.csv", "wb") as file:
    for start in range(0, rows, 10_000):
        part = view.take(np.arange(start, min(start + 10_000, rows)))
        proba = model.predict_proba(part)
        best = targets.space.decide(proba)
        columns = zip(targets.space.names(best), targets.space.certainty(proba, best))
        made = [{"label": label, "probability": own} for label, own in columns]
        file.write(encode(made, ".csv", header=not start))
print(json.dumps({
    "rows": rows, "dim": int(sys.argv[3]), "head": sys.argv[4], **stages["head"], "stages": stages,
}))
"""


def run(shapes: tuple[tuple[int, int], ...] = SHAPES, head: str = "ridge") -> list[dict[str, Any]]:
    results = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [folder, *map(str, shape)]
            subprocess.run([sys.executable, "-c", _FILL, *arguments], check=True)
            command = [sys.executable, "-c", _TRAIN, *arguments, head]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout))
        print(done.stdout.strip(), flush=True)
    return results


if __name__ == "__main__":
    head, *given = sys.argv[1:] if sys.argv[1:2] == ["logistic"] else ["ridge", *sys.argv[1:]]
    pairs = tuple(zip(map(int, given[::2]), map(int, given[1::2]), strict=True))
    named = "" if head == "ridge" else f"_{head}"
    save(f"many_rows{named}", run(pairs or SHAPES, head))
