"""A results folder as tables, with corrections for many comparisons and over seeds."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from benchmarks.study.inputs import StudySettings
from benchmarks.study.results import read_json, unit_path

ALPHA = 0.05
"""Below this, a corrected p-value counts as a difference."""

MARGIN = 0.01
"""Accuracies that differ by no more than this share count as equal."""

_SHARED = 0.1  # datasets with more test texts in common than this share are not independent

_CASE = ["dataset", "encoder"]
_DIFFERENCE = ("difference", "low", "high", "p_value")


def holm(p_values: Sequence[float] | pd.Series) -> npt.NDArray[np.float64]:
    """Holm's step-down correction (1979) of the p-values (m,) of one family."""
    if not len(p_values):
        return np.zeros(0)
    gc.freeze()  # multipletests collects garbage at each call, which takes a quarter of a second
    try:
        return np.asarray(multipletests(p_values, method="holm")[1])
    finally:
        gc.unfreeze()


def with_verdicts(rows: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Rows with ``p_holm``, corrected over all of them, and ``verdict``.

    ``better`` and ``worse`` have a corrected p-value below `ALPHA` and an interval that excludes
    zero, ``equal`` an interval within `MARGIN`; the others are ``unclear``. ``prefix`` is that of
    the columns ``difference``, ``low``, ``high`` and ``p_value``.
    """
    if rows.empty:
        return rows
    p, low, high = holm(rows[f"{prefix}p_value"]), rows[f"{prefix}low"], rows[f"{prefix}high"]
    verdict = np.select(
        [(p < ALPHA) & (low > 0), (p < ALPHA) & (high < 0), (low >= -MARGIN) & (high <= MARGIN)],
        ["better", "worse", "equal"],
        "unclear",
    )
    return rows.assign(p_holm=p, verdict=verdict)


def over_seeds(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row for each key, with the mean of numbers over seeds.

    The mean of the seeds' intervals is no narrower than that of the mean value, since averages vary
    no more than what is averaged. p-values are twice the median of the seeds' (at most 1;
    Meinshausen, Meier and Bühlmann, Journal of the American Statistical Association, 2009), or a
    single seed's own. ``NAME_sd`` are standard deviations over ``seeds``.
    """
    if rows.empty:
        return rows
    groups = rows.groupby(list(keys), sort=False)
    table, seeds = groups.first(), groups.size()
    for name in rows.select_dtypes("number"):
        values = groups[name]
        table[name] = values.mean()
        if name.endswith("p_value"):
            table[name] = values.median().where(seeds == 1, (2 * values.median()).clip(upper=1.0))
        elif name.endswith(("accuracy", "macro_f1", "difference")):
            table[f"{name}_sd"] = values.std()
    return table.assign(seeds=seeds).reset_index()


@dataclass(frozen=True)
class Evidence:
    """A study's index (``study.json``) and its units by name, as tables.

    Tables have a row for each measurement, in the order of the datasets, and no row where nothing
    was measured. Shares are from 0 to 1.
    """

    index: Mapping[str, Any]
    units: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Read a results folder; a FormatError when it is no study's, incomplete or damaged."""
        index = read_json(folder / "study.json")
        return cls(index, {name: read_json(unit_path(folder, name)) for name in index["units"]})

    @cached_property
    def settings(self) -> StudySettings:
        return StudySettings(**self.index["settings"])

    @property
    def datasets(self) -> list[str]:
        return list(self.index["datasets"])

    @cached_property
    def sources(self) -> dict[str, str]:
        """The source of each dataset; those that share many texts have the same one."""
        sources = {name: name for name in self.datasets}
        for shared in self.index["shared_texts"]:
            if shared["fraction"] > _SHARED:
                old, new = sources[shared["train_of"]], sources[shared["test_of"]]
                sources = {name: new if own == old else own for name, own in sources.items()}
        return sources

    @property
    def dates(self) -> list[str]:
        """The first and the last day, or the only one."""
        dates = sorted({unit["date"] for unit in self.units.values()})
        return list(dict.fromkeys((dates[0], dates[-1])))

    @cached_property
    def data(self) -> pd.DataFrame:
        return pd.DataFrame([{"dataset": d, **facts} for d, facts in self._results("data")])

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """Every block, compared with the last layer at the same pooling and the encoder's best."""
        table = self._table("profile", "blocks")
        return table if "constant" in table else table.assign(constant=False)

    @cached_property
    def best_layers(self) -> pd.DataFrame:
        """Each encoder's best block on training rows against its last layer, on test rows."""
        rows = [
            {"dataset": dataset, "encoder": encoder, **row}
            for dataset, profile in self._results("profile")
            for encoder, row in profile["encoders"].items()
        ]
        return with_verdicts(pd.DataFrame(rows))

    @cached_property
    def middle_layers(self) -> pd.DataFrame:
        """Each encoder's block of the upper half below the last layer that is best on training
        rows, against the last layer at the same pooling, on test rows."""
        if self.blocks.empty:
            return self.blocks
        informative = self.blocks[~self.blocks["constant"]]
        middle = informative[informative["depth"].between(0.5, 1, inclusive="left")]
        best = middle.loc[middle.groupby(_CASE, sort=False)["loss"].idxmin()]
        columns = {"diff": "difference", "diff_low": "low", "diff_high": "high", "p": "p_value"}
        kept = best[[*_CASE, "block", *columns]].rename(columns=columns)
        return with_verdicts(kept.reset_index(drop=True))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """The informative blocks at the pooling of their encoder's last layer."""
        best = self.best_layers
        if best.empty:
            return best
        poolings = best[_CASE].assign(pooling=best["last"].str.rpartition(":")[2])
        return self.blocks[~self.blocks["constant"]].merge(poolings)

    @cached_property
    def cases(self) -> pd.DataFrame:
        """For each dataset and encoder whether a layer is ``clear``ly unlike the last or all are
        the ``same`` as it within `MARGIN`, how far layers ``spread`` at the pooling of the last,
        and how much better than the last an average layer of the upper half (``band``) is."""
        if self.blocks.empty:
            return self.blocks
        blocks, layers = self.blocks, self.layers
        accuracy = layers.groupby(_CASE, sort=False)["accuracy"]
        within = (blocks["diff_low"] >= -MARGIN) & (blocks["diff_high"] <= MARGIN)
        compared = blocks.assign(within=within)[blocks["p"].notna()]
        columns = {
            "clear": blocks.groupby(_CASE)["p_holm"].min() < ALPHA,
            "same": compared.groupby(_CASE)["within"].all(),
            "spread": accuracy.max() - accuracy.min(),
            "band": layers[layers["depth"] >= 0.5].groupby(_CASE)["diff"].mean(),
        }
        return pd.DataFrame(columns).reset_index()

    @cached_property
    def _dataset_pairs(self) -> pd.DataFrame:
        """Each encoder's best block on a dataset and on another (``_from``)."""
        best = self.best_layers[[*_CASE, "best"]]
        pairs = best.merge(best, on="encoder", suffixes=("", "_from"))
        return pairs[pairs["dataset"] != pairs["dataset_from"]]

    @cached_property
    def shared_best(self) -> pd.DataFrame:
        """For each encoder the ordered pairs of datasets that have the same best block."""
        if self.best_layers.empty:
            return self.best_layers
        pairs = self._dataset_pairs
        return pairs[pairs["best"] == pairs["best_from"]]

    @cached_property
    def borrowed(self) -> pd.DataFrame:
        """For each encoder and two datasets, what the best block of the one (``_from``) does on the
        other against its own; pairs with the same best block are left out."""
        if self.best_layers.empty:
            return self.best_layers
        pairs = self._dataset_pairs
        pairs = pairs[pairs["best"] != pairs["best_from"]]
        names = ("best_from", *_DIFFERENCE)
        columns = ("block", "best_diff", "best_diff_low", "best_diff_high", "best_p")
        blocks = self.blocks[["dataset", *columns]].set_axis(["dataset", *names], axis=1)
        return with_verdicts(pairs.merge(blocks, on=["dataset", "best_from"]))

    @cached_property
    def selections(self) -> pd.DataFrame:
        """Each choice of blocks, against the ``last_`` layer and for several encoders ``member_``,
        the best of them."""
        return over_seeds(self._seeds("selections"), ["dataset", "group", "way"])

    @cached_property
    def group_gains(self) -> pd.DataFrame:
        """The greedy blocks of several encoders against those of the best one of them."""
        table = self.selections
        if "member_group" not in table:
            return pd.DataFrame()
        table = table[(table["way"] == "greedy") & table["member_group"].notna()]
        names = {f"member_{name}": name for name in _DIFFERENCE}
        kept = table[["dataset", "group", "member_group", "accuracy", *names]]
        return with_verdicts(kept.rename(columns=names).reset_index(drop=True))

    @cached_property
    def fusions(self) -> pd.DataFrame:
        """Each fusion and head against concatenation with a ridge head on the same blocks, the
        others of a dataset, group and choice with verdicts that are corrected over all of them."""
        family = ["dataset", "group", "way"]
        table = over_seeds(self._seeds("fusions"), [*family, "fusion", "head"])
        if table.empty:
            return table
        others = table[(table["fusion"] != "concat") | (table["head"] != "ridge")]
        judged = [with_verdicts(rows, "concat_") for _, rows in others.groupby(family, sort=False)]
        return table.join(pd.concat(judged)[["p_holm", "verdict"]])

    @cached_property
    def fusion_means(self) -> pd.DataFrame:
        """Each fusion and head over datasets and groups, the best first."""
        if self.fusions.empty:
            return self.fusions
        rows = self.fusions.dropna(subset="verdict")
        rows = rows.assign(better=rows["verdict"] == "better", worse=rows["verdict"] == "worse")
        names = ["fusion", "head"]
        table = rows.groupby(names, sort=False).agg(
            comparisons=("verdict", "size"),
            gain=("concat_difference", "mean"),
            better=("better", "sum"),
            worse=("worse", "sum"),
            seconds=("seconds", "mean"),
        )
        ways = rows.pivot_table("concat_difference", names, "way").reindex(
            columns=["greedy", "best"]
        )
        return table.join(ways).sort_values("gain", ascending=False, kind="stable").reset_index()

    @cached_property
    def promises(self) -> pd.DataFrame:
        """For each dataset the rank correlation of the measure that pairs are ranked by with the
        gain of fusing them; ``verdict`` says on which side of zero its interval lies."""
        rows = []
        for dataset, result in self._results("complementarity"):
            estimates = result["correlations"].get("two encoders", {})
            if result["headline"] in estimates:
                own = estimates[result["headline"]]
                verdict = "better" if own["low"] > 0 else "worse" if own["high"] < 0 else "unclear"
                rows.append({"dataset": dataset, **own, "verdict": verdict})
        return pd.DataFrame(rows)

    @cached_property
    def points(self) -> pd.DataFrame:
        """For each pair of blocks of two encoders, what fusing it promised and what it brought."""
        rows = [(d, *point) for d, r in self._results("complementarity") for point in r["points"]]
        return pd.DataFrame(rows, columns=["dataset", "promised", "gain"])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Accuracy by the number of labels, and the ``gain_`` of fusion over the last layer."""
        return self._table("curve", "points").rename(columns={"gain_value": "gain_difference"})

    @cached_property
    def gain_falls(self) -> pd.DataFrame:
        """For each dataset how much larger the gain of fusion is with the fewest labels (``few_``)
        than with all (``all_``); the two gains' errors count as independent."""
        if self.curves.empty:
            return self.curves
        names = [f"gain_{end}" for end in ("difference", "low", "high")]
        kept = self.curves[["dataset", "n_rows", *names]].groupby("dataset", sort=False)
        table = kept.head(1).merge(kept.tail(1), on="dataset", suffixes=("_few", "_all"))
        difference = table["gain_difference_few"] - table["gain_difference_all"]
        widths = [table[f"gain_high_{end}"] - table[f"gain_low_{end}"] for end in ("few", "all")]
        half = np.hypot(*widths) / 2
        p = 2 * norm.sf(norm.ppf(0.975) * np.abs(difference) / np.maximum(half, 1e-12))
        columns = {"low": difference - half, "high": difference + half, "p_value": p}
        return with_verdicts(table.assign(difference=difference, **columns))

    @cached_property
    def resources(self) -> pd.DataFrame:
        """Measured costs; ``model_mb`` is the peak memory beyond Python's and torch's own."""
        parts = [(name.partition("-resources-"), unit) for name, unit in self.units.items()]
        rows = [{"dataset": name, **unit["result"]} for (name, _, kind), unit in parts if kind]
        table = pd.DataFrame(rows)
        if table.empty:
            return table
        base = table["base_mb"].where(~table["device"].str.startswith("cuda"), 0.0)
        return table.assign(model_mb=(table["peak_mb"] - base).clip(lower=1e-9))

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name; empty ones are left out."""
        tables = {
            "layers": self.blocks,
            "best_against_last": self.best_layers,
            "borrowed_layers": self.borrowed,
            "selections": self.selections,
            "fusions": self.fusions,
            "group_gains": self.group_gains,
            "encoder_pairs": self._table("complementarity", "encoder_pairs"),
            "curves": self.curves,
            "resources": self.resources,
        }
        return {name: table for name, table in tables.items() if len(table)}

    def _results(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The results of one kind of unit, with their datasets."""
        for dataset in self.datasets:
            if unit := self.units.get(f"{dataset}-{kind}"):
                yield dataset, unit["result"]

    def _table(self, kind: str, name: str) -> pd.DataFrame:
        """The rows that results of one kind hold by a name, objects within as columns."""
        rows = [{"dataset": d, **row} for d, result in self._results(kind) for row in result[name]]
        return pd.json_normalize(rows, sep="_")

    def _seeds(self, name: str) -> pd.DataFrame:
        kinds = [f"fusions-seed{seed}" for seed in range(self.settings.seeds)]
        return pd.concat([self._table(kind, name) for kind in kinds])
