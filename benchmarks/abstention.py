"""Whether abstention keeps its promises: coverage of sets, and accuracy of the texts it decides.

20 times 1,000 random rows of a set are fitted (mpnet, all layers, concatenation, ridge), and the
thresholds from its nested out-of-fold probabilities are measured on all other rows. A row whose
label is not among the 1,000 counts as an error.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.packaged import DATASETS, embed, read_sets
from layerfuse import LayerFusionClassifier
from layerfuse.calibration import fit_abstention
from layerfuse.errors import LayerfuseWarning
from layerfuse.metrics import share_interval

ROWS, SPLITS = 1000, 20
COVERAGES = (0.9, 0.95)
TARGETS = {"mr": (0.9, 0.95), "sst2": (0.95, 0.98), "r8": (0.98, 0.99), "r52": (0.95, 0.98)}


def run() -> list[dict[str, Any]]:
    results = []
    for texts in read_sets(DATASETS):
        every = [*texts.train, *texts.test]
        names = texts.targets.space.classes
        known = texts.y_test < len(names)
        labels = np.array([f"unseen {code}" for code in range(texts.y_test.max() + 1)], object)
        labels[: len(names)] = names.astype(str)
        truth = labels[np.concatenate([texts.targets.codes, texts.y_test])].astype(str)
        embeddings = embed(every, ("mpnet",), ("mean",))
        start = time.perf_counter()
        splits = []
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(every))
            train, test = order[:ROWS], order[ROWS:]
            model = LayerFusionClassifier(
                "mpnet", fusion="concat", head="ridge", fragments="keep", random_state=seed
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LayerfuseWarning)
                model.fit([every[row] for row in train], truth[train])
            proba = model.model_.predict_proba(embeddings.select(model.model_.blocks).take(test))
            splits.append(measure(texts.name, model, proba, truth[test]))
        seconds = time.perf_counter() - start
        result = {"dataset": texts.name, "rows": ROWS, "test_rows": len(every) - ROWS}
        result |= {"unseen": int((~known).sum()), "seconds": seconds, "splits": splits}
        results.append(result | summarize(splits))
        print(f"{texts.name}: {seconds:.0f} s, {summarize(splits)}", flush=True)
    return results


def measure(
    name: str,
    model: LayerFusionClassifier,
    proba: npt.NDArray[np.float64],
    truth: npt.NDArray[np.str_],
) -> dict[str, Any]:
    """Each promise of one fit on the other rows."""
    record = model.fit_record_
    of_label = (truth[:, None] == model.classes_[None, :]).astype(bool)
    right = model.label_space_.decode(model.label_space_.decide(proba)) == truth
    found: dict[str, Any] = {"accuracy": float(right.mean())}
    for coverage in COVERAGES:
        rule = fit_abstention(record.proba, record.sample.targets, coverage=coverage)
        assert rule is not None
        sets = rule.sets(proba)
        found[f"coverage {coverage}"] = {
            "covered": float((sets & of_label).any(axis=1).mean()),
            "size": float(sets.sum(axis=1).mean()),
            "one_label": float((sets.sum(axis=1) == 1).mean()),
        }
    for target in TARGETS[name]:
        rule = fit_abstention(record.proba, record.sample.targets, target_accuracy=target)
        assert rule is not None
        kept = ~rule.abstains(proba)
        hits, n = int(right[kept].sum()), int(kept.sum())
        found[f"target {target}"] = {
            "kept": n / len(kept),
            "accuracy": hits / n if n else None,
            "high": share_interval(hits, n).high if n else None,
        }
    return found


def summarize(splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over splits, and splits that met their target."""
    found: dict[str, Any] = {"accuracy": float(np.mean([own["accuracy"] for own in splits]))}
    for name in splits[0]:
        own = [split[name] for split in splits]
        if name.startswith("coverage"):
            found[name] = {key: float(np.mean([one[key] for one in own])) for key in own[0]}
        elif name.startswith("target"):
            target = float(name.split()[1])
            met = [one["accuracy"] is None or one["accuracy"] >= target for one in own]
            kept = float(np.mean([one["kept"] for one in own]))
            none = sum(one["accuracy"] is None for one in own)
            found[name] = {"met": sum(met), "of": len(met), "kept": kept, "none_kept": none}
    return found
