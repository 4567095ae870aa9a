"""Sections of plain facts: the data, what it took, how to use the result, where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from layerfuse.config import FitConfig
from layerfuse.report.parts import Section, Table, percent, plural
from layerfuse.report.reading import Run

__all__ = ["data", "duplicates", "provenance", "resources", "use"]

_FACTS = ("fact", "value")


def duplicates(run: Run) -> Section:
    """Test rows that training rows give away."""
    found, audit = run.details["near_duplicates"], run.details["audit"]
    if found is None:
        lead = "There is no test split; near-duplicates across train and test cannot be looked for."
        return Section("duplicates", "Near-duplicates across train and test", [lead])
    rows = audit["splits"][audit["test_name"]]["rows"]
    share = percent((found["count"] + audit["leaks"]["count"]) / max(1, rows))
    lead = (
        f"{plural(audit['leaks']['count'], 'test row')} also in train word for word, and "
        f"{plural(found['count'], 'row')} nearly (at least {100 * found['threshold']:.0f} % of "
        f"words and word pairs in common), together {share} of {rows:,}. "
        f"{found['conflicts']:,} of the near ones bear another label than their twin."
    )
    cells = [
        (
            f"{pair['test_row']} / {pair['train_row']}",
            percent(pair["similarity"], 0),
            pair["test_label"]
            if pair["test_label"] == pair["train_label"]
            else f"{pair['test_label']} / {pair['train_label']}",
            pair["test_text"],
        )
        for pair in found["pairs"]
    ]
    head = ("test / train row", "alike", "label", "test text")
    table = Table(
        "Pairs, those with two labels first", head, cells, frozenset({1}), frozenset({3}), 4
    )
    tables = [table] if cells else []
    return Section("duplicates", "Near-duplicates across train and test", [lead], [], tables)


def data(run: Run) -> Section:
    """The audit."""
    audit = run.details["audit"]
    splits = audit["splits"]
    kinds: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("rows", lambda split: f"{split['rows']:,}"),
        ("classes", lambda split: str(len(split["classes"]))),
        ("largest class", _largest),
        ("empty texts", lambda split: f"{split['empty']['count']:,}"),
        ("repeated texts", lambda split: f"{split['duplicates']['count']:,}"),
        ("texts with two labels", lambda split: f"{split['conflicts']:,}"),
        ("texts over 2,000 characters", lambda split: f"{split['over_long']['count']:,}"),
    )
    cells = [(name, *(value(split) for split in splits.values())) for name, value in kinds]
    columns = frozenset(range(1, len(splits) + 1))
    tables = [Table("Splits", ("", *splits), cells, columns)]
    lead = []
    if audit["small_classes"]:
        few = ", ".join(f"{name} ({count})" for name, count in audit["small_classes"].items())
        lead.append(f"Classes with fewer than 5 training rows: {few}.")
    if audit["untested_classes"]:
        lead.append(f"Classes without a test row: {', '.join(audit['untested_classes'])}.")
    learned, given = run.result["data"]["learned_rows"], run.result["data"]["train_rows"]
    if learned != given:
        lead.append(f"{learned:,} of {given:,} rows are learned from; the rest are parts of them.")
    if run.result["truncated_share"]:
        share = percent(run.result["truncated_share"])
        lead.append(f"{share} of the training texts are longer than an encoder reads, and are cut.")
    return Section("data", "The data", lead, [], tables)


def _largest(split: Any) -> str:
    name, count = next(iter(split["classes"].items()), ("–", 0))
    return f"{name} ({percent(count / max(1, split['rows']), 0)})"


def resources(run: Run) -> Section:
    """Seconds, milliseconds and bytes."""
    times = run.result["timings"]
    steps = {
        "extract_s": "reading texts",
        "score_s": "scoring blocks",
        "select_s": "selecting, comparing fusions",
        "cv_s": "nested resampling",
        "head_s": "training the head",
        "baselines_s": "baselines",
        "total_s": "in all",
    }
    cells = [(steps[name], f"{times[name]:.1f}") for name in steps if name in times]
    last = frozenset({len(cells) - 1})
    tables = [
        Table("Time of the run, seconds", ("step", "seconds"), cells, frozenset({1}), strong=last)
    ]
    reading = []
    for encoder in run.details["encoders"]:
        own = encoder["cost"]
        reading.append(
            (
                encoder["name"],
                str(len(own["parameters"]) - 1),
                f"{own['parameters'][-1] / 1e6:.1f} M",
                f"{own['parameters'][-1] * own['bytes_per_parameter'] / 1e6:.0f}",
                f"{own['ms_per_text']:.2f}",
                f"{own['tokens_per_text']:.0f}",
                f"{own['device']}, {own['dtype']}",
            )
        )
    head = ("encoder", "layers", "parameters", "MB", "ms a text", "tokens a text", "device")
    tables.append(Table("Encoders in full", head, reading, frozenset(range(1, 6))))
    peak = run.details["environment"]["peak_memory_mb"]
    used = run.result["cost"]
    lead = [
        f"What ships holds {used['parameters'] / 1e6:.1f} M parameters "
        f"({used['memory_mb']:.0f} MB) and takes {used['ms_per_text']:.2f} ms a text here."
        + ("" if peak is None else f" The run's memory peaked at {peak / 1e3:.1f} GB.")
    ]
    if not times["select_s"]:
        lead.append("The analysis was taken from the store, where an earlier run had left it.")
    return Section("resources", "What the run took", lead, [], tables)


def use(run: Run) -> Section:
    """Code to copy."""
    bundle = f"{run.result['run']}/bundle"
    code = {
        "Python": "import layerfuse\n\n"
        f"classifier = layerfuse.load({bundle!r})\n"
        'classifier.predict(["a text"])\n'
        'classifier.predict_proba(["a text"])  # columns: classifier.classes_',
        "Command line": f"layerfuse predict {_quoted(bundle)} new.csv\n"
        f"layerfuse evaluate {_quoted(bundle)} labelled.csv",
    }
    lead = (
        "The bundle holds tensors, JSON and a card, and nothing that runs. Encoders are loaded cut "
        "off above the highest layer in use."
    )
    return Section("use", "How to use it", [lead], code=code)


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def provenance(run: Run) -> Section:
    """Versions, hardware, settings, seed, fingerprints."""
    known, settings = run.details["environment"], run.result["settings"]
    facts = [
        ("made", run.details["created"].replace("T", " ").replace("+00:00", " UTC")),
        ("data", run.result["data"]["name"]),
        ("seed", str(settings["seed"])),
        ("processor", f"{known['cpu']}, {plural(known['cores'] or 1, 'core')}"),
        ("system", known["platform"]),
        ("Python", known["python"]),
        *known["packages"].items(),
    ]
    tables = [Table("Machine and versions", _FACTS, facts, open_rows=30)]
    prints = []
    for encoder in run.details["encoders"]:
        origin = encoder["source"] + (f" @ {encoder['revision']}" if encoder["revision"] else "")
        prints += [
            (encoder["name"], part, value, origin)
            for part, value in encoder["fingerprints"].items()
        ]
    head = ("encoder", "part", "fingerprint", "source")
    tables.append(Table("Fingerprints", head, prints, open_rows=30))
    usual = {field.name: field.default for field in fields(FitConfig)}
    cells = [
        (name, _shown(value), "" if _same(value, usual.get(name)) else "set")
        for name, value in settings.items()
    ]
    cells.sort(key=lambda row: row[2] == "")
    changed = sum(row[2] == "set" for row in cells)
    tables.append(Table("Settings", ("setting", "value", ""), cells, open_rows=changed))
    return Section("provenance", "Where this comes from", [], [], tables)


def _same(value: Any, usual: Any) -> bool:
    known = tuple(value) if isinstance(value, list) else value
    return bool(known == usual or known == {})


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_shown(own)}" for name, own in value.items()) or "–"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
