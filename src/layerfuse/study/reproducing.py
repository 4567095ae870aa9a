"""The whole study: every unit of work in turn, skipping those that are in the results folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from layerfuse._version import __version__
from layerfuse.blocks import BlockRef
from layerfuse.embeddings import EmbeddingStore
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, LayerfuseError
from layerfuse.probing import ProbeResults
from layerfuse.progress import SILENT, Reporter
from layerfuse.study.combinations import Choice, choices, encoder_groups
from layerfuse.study.costs import measure_cost, timed_choices
from layerfuse.study.data import StudyData, count_shared, prepare
from layerfuse.study.fusions import measure_fusions
from layerfuse.study.labels import measure_curve
from layerfuse.study.machine import machine
from layerfuse.study.pairs import measure_pairs_of
from layerfuse.study.profiles import Profiled, describe_profile, profile_blocks
from layerfuse.study.reading import EmbeddedData, identities, read_all
from layerfuse.study.results import Results, write_compact
from layerfuse.study.settings import StudySettings
from layerfuse.targets import LabelSpace, Targets

__all__ = ["reproduce"]

_ROUND = 2  # goes up when a unit's numbers come to mean something else


def reproduce(
    settings: StudySettings, store: EmbeddingStore, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Measure everything that the settings ask for and is not in their folder yet.

    Every unit is a file that is there whole or not at all, so that a run that was killed goes on
    with the same command. Datasets and encoders that cannot be had are named and skipped.

    Returns
    -------
    dict
        What ``study.json`` in the folder says: settings, what was skipped, seconds of each unit
        that was made in this run.

    Raises
    ------
    ConfigError
        When no dataset or no encoder is left.
    StorageError
        When the folder cannot be written to.
    """
    started = time.perf_counter()
    results = Results(settings.out, reporter)
    sets, skipped = _prepare(settings, reporter)
    embedded, encoders, missing = read_all(sets, settings, store, reporter)
    skipped |= missing
    read = time.perf_counter()
    for number, own in enumerate(embedded):
        _Study(own, encoders, settings, results, reporter).run(timed=number == 0)
    shared = count_shared(sets)
    index = {
        "format": "layerfuse-study",
        "format_version": 1,
        "layerfuse_version": __version__,
        "settings": _plain(settings),
        "datasets": [data.name for data in sets],
        "encoders": {
            name: {
                "layers": encoder.n_layers,
                "dim": encoder.dim,
                "dtype": encoder.dtype,
                "fingerprints": encoder.fingerprints,
            }
            for name, encoder in encoders.items()
        },
        "skipped": skipped,
        "shared_texts": shared,
        "machine": machine(),
        "units": results.names,
    }
    write_compact(settings.out / "study.json", index)
    seconds = {"reading": read - started, **results.seconds}
    seconds["all"] = time.perf_counter() - started
    return {**index, "seconds": seconds, "reused_units": results.reused}


def _prepare(settings: StudySettings, reporter: Reporter) -> tuple[list[StudyData], dict[str, str]]:
    sets: list[StudyData] = []
    skipped: dict[str, str] = {}
    for source in settings.datasets:
        try:
            data = prepare(source, settings.sample, reporter)
        except LayerfuseError as error:
            skipped[source] = str(error)
            reporter.note(f"{source} is skipped: {error}")
            continue
        if data.name in [other.name for other in sets]:
            raise ConfigError(f"Two datasets are called {data.name!r}. Rename one of the files.")
        sets.append(data)
    if not sets:
        raise ConfigError(
            "None of the datasets can be had: "
            + " ".join(f"{name}: {reason}" for name, reason in skipped.items())
        )
    return sets, skipped


def _plain(settings: StudySettings) -> dict[str, Any]:
    """What a reader needs to run the same again; places of this machine are left out."""
    value = asdict(settings)
    for name in ("out", "store", "needs_code", "device"):
        del value[name]
    return {**value, "trusted": sorted(settings.trusted)}


class _Study:
    """One dataset's units."""

    def __init__(
        self,
        embedded: EmbeddedData,
        encoders: Mapping[str, FrozenEncoder],
        settings: StudySettings,
        results: Results,
        reporter: Reporter,
    ) -> None:
        self._embedded = embedded
        self._data = embedded.data
        self._encoders = encoders
        self._settings = settings
        self._results = results
        self._reporter = reporter
        self._key = {
            "round": _ROUND,
            "dataset": self._data.name,
            "rows": self._data.key,
            "encoders": identities(encoders),
            "poolings": list(settings.poolings),
        }

    def run(self, *, timed: bool) -> None:
        """Make the units that are not there; ``timed`` ones also on resources."""
        settings, parts = self._settings, self._settings.parts
        self._unit("data", {}, lambda: self._data.facts)
        if "profiles" in parts:
            self._unit("profile", {}, lambda: describe_profile(self._profiled, self._data.y_test))
        for seed in range(settings.seeds if "fusions" in parts else 0):
            self._unit(
                f"fusions-seed{seed}",
                {
                    "max_blocks": settings.max_blocks,
                    "share": settings.share,
                    "most_rows": settings.most_rows,
                    "seed": seed,
                },
                lambda seed=seed: measure_fusions(
                    self._embedded, self._probed, settings, seed, self._reporter
                ),
            )
        if "complementarity" in parts:
            self._unit(
                "complementarity",
                {"pairs": settings.pairs, "pair_rows": settings.pair_rows},
                lambda: measure_pairs_of(self._embedded, self._probed, settings),
            )
        if "curves" in parts:
            self._unit(
                "curve",
                {
                    "shares": list(settings.curve_shares),
                    "repeats": settings.curve_repeats,
                    "max_blocks": settings.max_blocks,
                },
                lambda: measure_curve(self._embedded, self._probed, settings, self._reporter),
            )
        if timed and "resources" in parts:
            self._run_resources()

    def _run_resources(self) -> None:
        made = machine()
        place = {name: made[name] for name in ("cpu", "cores", "gpu")}
        step = max(1, len(self._data.test) // self._settings.timed)
        texts = self._data.test[::step][: self._settings.timed]
        rows = self._targets.sample(self._settings.most_rows, seed=0)
        for timed in timed_choices(self._choices()):
            self._unit(
                f"resources-{timed.name}",
                {
                    "machine": place,
                    "texts": len(texts),
                    "blocks": list(map(str, timed.choice.blocks)),
                },
                lambda timed=timed: measure_cost(
                    timed, self._embedded, self._probed, self._encoders, texts, rows
                ),
            )

    def _choices(self) -> list[Choice]:
        """Blocks that each way chooses from all training rows."""

        def make() -> dict[str, Any]:
            y, scores = self._targets, self._probed.scores
            found = [
                choice
                for group in encoder_groups(scores)
                for choice in choices(self._probed, y, group, self._settings.max_blocks)
            ]
            return {
                "choices": [
                    {
                        "encoders": list(choice.encoders),
                        "way": choice.way,
                        "blocks": [str(block) for block in choice.blocks],
                    }
                    for choice in found
                ]
            }

        made = self._unit("choices", {"max_blocks": self._settings.max_blocks}, make)
        return [
            Choice(
                tuple(row["encoders"]),
                row["way"],
                tuple(BlockRef.parse(text) for text in row["blocks"]),
            )
            for row in made["choices"]
        ]

    def _unit(self, kind: str, asked: Mapping[str, Any], make: Any) -> dict[str, Any]:
        return self._results.unit(f"{self._data.name}-{kind}", {**self._key, **asked}, make)

    @property
    def _targets(self) -> Targets:
        return Targets(LabelSpace(np.arange(self._data.n_classes)), self._data.y)

    @cached_property
    def _profiled(self) -> Profiled:
        """Made once, and only when a unit is missing."""
        return profile_blocks(self._embedded, self._reporter)

    @property
    def _probed(self) -> ProbeResults:
        return self._profiled.probed
