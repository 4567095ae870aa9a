"""A results folder as a whole, for those who draw conclusions from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from layerfuse.files import read_json
from layerfuse.study.corrections import over_seeds
from layerfuse.study.results import read_units

__all__ = ["Evidence"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """``index`` is study.json, ``units`` its units by name, each with settings and machine."""

    index: Row
    units: dict[str, Row]

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Read a results folder.

        Raises
        ------
        NotFoundError, FormatError
            When it is no study's, incomplete or damaged.
        """
        index = read_json(folder / "study.json", kind="layerfuse-study", version=1)
        return cls(index, read_units(folder, index["units"]))

    @property
    def datasets(self) -> list[str]:
        return list(self.index["datasets"])

    @property
    def encoders(self) -> list[str]:
        return list(self.index["encoders"])

    def result(self, dataset: str, kind: str) -> Row | None:
        """The result of one unit of a dataset; None when that part was not run."""
        unit = self.units.get(f"{dataset}-{kind}")
        return None if unit is None else unit["result"]

    def results(self, kind: str) -> Iterator[tuple[str, Row]]:
        """The results of one kind, with their datasets."""
        for dataset in self.datasets:
            found = self.result(dataset, kind)
            if found is not None:
                yield dataset, found

    @cached_property
    def selections(self) -> list[Row]:
        """Each choice of blocks over seeds: ``accuracy`` and ``macro_f1`` as estimates, ``last``
        and, for several encoders, ``member`` as differences."""
        table = []
        for dataset, rows in self._over_seeds("selections", ("group", "way")):
            row: Row = {"dataset": dataset, **{k: rows[0][k] for k in ("group", "way")}}
            row |= {name: rows[0][name] for name in ("fusion", "head", "blocks")}
            row["accuracy"] = over_seeds([_estimate(each, "accuracy", "") for each in rows])
            row["macro_f1"] = over_seeds(
                [_estimate(each, "macro_f1", "macro_f1_") for each in rows]
            )
            for name in ("last", "member"):
                if f"{name}_difference" in rows[0]:
                    row[name] = over_seeds([_difference(each, name) for each in rows])
                    row[f"{name}_group"] = rows[0][f"{name}_group"]
            table.append(row)
        return table

    @cached_property
    def fusions(self) -> list[Row]:
        """Each fusion over seeds: ``accuracy``, ``concat`` (the difference to concatenation)."""
        table = []
        for dataset, rows in self._over_seeds("fusions", ("group", "way", "fusion", "head")):
            row: Row = {"dataset": dataset}
            row |= {k: rows[0][k] for k in ("group", "way", "fusion", "head")}
            row["accuracy"] = over_seeds([_estimate(each, "accuracy", "") for each in rows])
            row["concat"] = over_seeds([_difference(each, "concat") for each in rows])
            row["seconds"] = sum(each["seconds"] for each in rows) / len(rows)
            table.append(row)
        return table

    @cached_property
    def resources(self) -> list[Row]:
        """Measured costs, with the dataset whose texts were read."""
        found = []
        for name, unit in self.units.items():
            dataset, _, kind = name.partition("-resources-")
            if kind:
                found.append({"dataset": dataset, **unit["result"]})
        return found

    def _over_seeds(self, kind: str, keys: tuple[str, ...]) -> Iterator[tuple[str, list[Row]]]:
        for dataset in self.datasets:
            groups: dict[tuple[Any, ...], list[Row]] = {}
            seed = 0
            while (found := self.result(dataset, f"fusions-seed{seed}")) is not None:
                for row in found[kind]:
                    groups.setdefault(tuple(row[key] for key in keys), []).append(row)
                seed += 1
            yield from ((dataset, rows) for rows in groups.values())


def _estimate(row: Row, name: str, prefix: str) -> dict[str, float]:
    return {"value": row[name], "low": row[f"{prefix}low"], "high": row[f"{prefix}high"]}


def _difference(row: Row, name: str) -> dict[str, float]:
    return {key: row[f"{name}_{key}"] for key in ("difference", "low", "high", "p_value")}
