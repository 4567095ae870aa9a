"""The whole study: every unit of work in turn, except those already in the results folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.packaged import Texts
from benchmarks.pairs import HEADLINE, correlate, measure_predictors, summarize, top_picks
from benchmarks.study.costs import Timed, measure_cost, timed_choices
from benchmarks.study.fusions import (
    Choice,
    blocks_only,
    choose_all,
    encoder_groups,
    measure_fusions,
)
from benchmarks.study.inputs import (
    EmbeddedData,
    ReadEncoder,
    StudySettings,
    count_shared,
    read_encoder,
)
from benchmarks.study.profiles import Profile, describe_profile, profile_blocks
from benchmarks.study.results import Results, machine, write_json
from layerfuse import BlockRef, EmbeddingStore
from layerfuse.complementarity import Pair, ProbeData, measure_pairs
from layerfuse.embeddings.extraction import BlockView
from layerfuse.errors import ConfigError, LayerfuseError
from layerfuse.evaluation.learning_curve import learning_curve
from layerfuse.probing import ProbeResults
from layerfuse.progress import Reporter

_ROUND = 3  # goes up when a unit's numbers come to mean something else
_RESAMPLES = 200
_SELECTED = {"preset", "datasets", "encoders", "parts", "seeds", "sample", "trusted"}


def run_study(
    settings: StudySettings,
    out: Path,
    command: str,
    reporter: Reporter,
    *,
    store: str | None = None,
    device: str = "auto",
) -> int:
    """Measure everything that the settings ask for and that is not in ``out`` yet.

    Each unit is a file that is there whole or not at all, so that a run that was killed is resumed
    by the same ``command``, which ``study.json`` names. Datasets and encoders that are not
    available are named there and skipped. Returns how many units were there already.
    """
    skipped: dict[str, str] = {}
    datasets: list[Texts] = []
    encoders: list[ReadEncoder] = []
    cached = EmbeddingStore(store)

    @contextmanager
    def skipping(source: str) -> Iterator[None]:
        try:
            yield
        except (LayerfuseError, MemoryError) as error:
            skipped[source] = str(error) or type(error).__name__
            reporter.note(f"{source} is skipped: {skipped[source]}")

    for source in settings.datasets:
        with skipping(source):
            datasets.append(Texts.read(source, settings.sample, reporter))
    for source in settings.encoders if datasets else ():
        with skipping(source):
            encoders.append(read_encoder(source, datasets, settings, cached, device, reporter))
    for kind, items in (("dataset", datasets), ("encoder", encoders)):
        names = [item.name for item in items]
        if not items:
            raise ConfigError(f"No {kind} is available. {' '.join(skipped.values())}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"Two {kind}s are called {twice[0]!r}. Rename one of them.")
    results = Results(out, reporter)
    for number, data in enumerate(datasets):
        sides = zip(*(own.blocks[number] for own in encoders), strict=True)
        embedded = EmbeddedData(data, *map(BlockView.join, sides))
        _measure(embedded, encoders, settings, results, reporter)
    index = {
        "format": "layerfuse-study",
        "format_version": 1,
        "command": command,
        "settings": asdict(settings),
        "datasets": [data.name for data in datasets],
        "encoders": {own.name: own.facts for own in encoders},
        "skipped": skipped,
        "shared_texts": count_shared(datasets),
        "machine": machine(),
        "units": results.names,
    }
    write_json(out / "study.json", index)
    return results.reused


def _measure(
    embedded: EmbeddedData,
    encoders: list[ReadEncoder],
    settings: StudySettings,
    results: Results,
    reporter: Reporter,
) -> None:
    """Measure one dataset's units."""
    data, parts = embedded.data, settings.parts
    key = {
        "round": _ROUND,
        "dataset": data.name,
        "rows": data.key,
        "encoders": {own.name: own.identity for own in encoders},
        **{name: value for name, value in asdict(settings).items() if name not in _SELECTED},
    }

    @cache  # and only when a unit is missing
    def profile() -> Profile:
        return profile_blocks(embedded, reporter)

    def unit(kind: str, make: Callable[[], Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        return results.unit(f"{data.name}-{kind}", {**key, **more}, make)

    def fusions(seed: int) -> dict[str, Any]:
        return measure_fusions(embedded, profile().probed, settings, seed, reporter)

    def choices() -> dict[str, Any]:
        probed = profile().probed
        every = choose_all(probed, data.targets, encoder_groups(probed.scores), settings.max_blocks)
        rows = [{**asdict(own), "blocks": list(map(str, own.blocks))} for own in every]
        return {"choices": rows}

    def costs(timed: Timed) -> dict[str, Any]:
        opened = {own.name: own.encoder for own in encoders}
        rows = data.targets.sample(settings.most_rows, 0)
        texts = data.test[:: max(1, len(data.test) // settings.timed)][: settings.timed]
        return measure_cost(timed, embedded, profile().probed, opened, texts, rows)

    unit("data", lambda: data.facts)
    if "profiles" in parts:
        unit("profile", lambda: describe_profile(profile(), data.y_test))
    for seed in range(settings.seeds if "fusions" in parts else 0):
        unit(f"fusions-seed{seed}", partial(fusions, seed))
    if "complementarity" in parts:
        unit("complementarity", lambda: _complementarity(embedded, profile().probed, settings))
    if "curves" in parts:
        unit("curve", lambda: _curve(embedded, profile().probed, settings, reporter))
    if "resources" not in parts:
        return
    every = [
        Choice(tuple(row["encoders"]), row["way"], tuple(map(BlockRef.parse, row["blocks"])))
        for row in unit("choices", choices)["choices"]
    ]
    place = {name: machine()[name] for name in ("cpu", "cores", "gpu")}
    for timed in timed_choices(every):
        unit(f"resources-{timed.name}", partial(costs, timed), machine=place)


def _curve(
    embedded: EmbeddedData, probed: ProbeResults, settings: StudySettings, reporter: Reporter
) -> dict[str, Any]:
    """The last layer, the best block and fusion with some labels and with all.

    Test rows of classes that training lacks are left out here.
    """
    data = embedded.data
    known = np.flatnonzero(data.y_test < data.targets.space.n_outputs)
    curve = learning_curve(
        embedded.train,
        data.targets.codes,
        embedded.test.take(known),
        data.y_test[known],
        shares=settings.curve_shares,
        repeats=settings.curve_repeats,
        budget=blocks_only(settings.max_blocks),
        probed=probed,
        reporter=reporter,
    )
    value = asdict(curve)
    for point in value["points"]:
        point["repeats"] = len(point.pop("draws"))
    return value


def _plain(pair: Pair) -> dict[str, Any]:
    """A pair's values as JSON has them."""
    values = {field.name: getattr(pair, field.name) for field in fields(Pair)}
    return {**values, "a": str(pair.a), "b": str(pair.b), "gain": asdict(pair.gain)}


def _complementarity(
    embedded: EmbeddedData, probed: ProbeResults, settings: StudySettings
) -> dict[str, Any]:
    """Encoders at their best blocks, pair by pair; and how measures on one half of some training
    rows rank pairs of blocks by the gain on the other half. No test row is read.
    """
    targets = embedded.data.targets
    best = [probed.scores.of(name).best.block for name in probed.scores.encoders]
    data = ProbeData(probed.scores, probed.coordinates, targets)
    encoder_pairs = [_plain(pair) for pair in measure_pairs(data, combinations(best, 2))]
    rows = targets.sample(settings.pair_rows, 0)
    pairs = measure_predictors(embedded.train.take(rows), targets[rows], max_pairs=settings.pairs)
    correlations = summarize([correlate(pairs, n_resamples=_RESAMPLES)])
    kept = pairs.groups()["two encoders"]
    points = np.stack([pairs.predictors[HEADLINE][kept], pairs.realized["accuracy_gain"][kept]], 1)
    return {
        "rows": len(rows),
        "pairs": len(pairs.members),
        "drawn": int(pairs.drawn.sum()),
        "headline": HEADLINE,
        "encoder_pairs": encoder_pairs,
        "correlations": {group: by["accuracy_gain"] for group, by in correlations.items()},
        "loss_correlations": {group: by["loss_gain"] for group, by in correlations.items()},
        "top_picks": top_picks(pairs),
        "points": points.tolist(),  # of each pair of two encoders, the promise and the gain
    }
