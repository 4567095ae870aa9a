"""What other commands tell a person in the terminal: records, checks, audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from layerfuse.files import human_bytes

__all__ = [
    "percent",
    "plain_table",
    "render_audit",
    "render_check",
    "render_rows",
    "render_verify",
    "render_written",
]


def plain_table(title: str) -> Table:
    """A table without vertical lines: with them, five columns do not fit 80 characters."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def percent(share: float) -> str:
    """A share from 0 to 1 in percent, with one decimal."""
    return f"{100 * share:.1f}"


def render_rows(result: Mapping[str, Any], out: Console) -> None:
    """Records of one kind as a table, or one record as lines."""
    for value in result.values():
        if isinstance(value, list):
            _render_records(value, out)
            return
    for name, value in result.items():
        out.print(f"{name}: {value}", soft_wrap=True)


def render_written(result: Mapping[str, Any], out: Console) -> None:
    """The outcome of ``report``."""
    out.print(f"{result['report']} ({human_bytes(result['n_bytes'])})", soft_wrap=True)
    if result["figures"]:
        out.print(f"{len(result['figures'])} figures beside {result['figures'][0]}", soft_wrap=True)


def _render_records(records: Sequence[Mapping[str, Any]], out: Console) -> None:
    if not records:
        out.print("nothing")
        return
    names = [name for name in records[0] if name not in ("description", "identity", "licence")]
    table = Table()
    headings = {"n_bytes": "size", "idle_s": "last used"}
    for name in names:
        table.add_column(headings.get(name, name.replace("_", " ")), overflow="fold")
    for record in records:
        table.add_row(*(_cell(name, record[name]) for name in names))
    out.print(table)


def _cell(name: str, value: Any) -> str:
    if name == "n_bytes":
        return human_bytes(value)
    if name == "idle_s":
        days = value / 86_400
        return f"{days:.1f} days ago" if days > 1 else f"{24 * days:.1f} h ago"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry:,}" for key, entry in value.items())
    return str(value)


def render_check(result: Mapping[str, Any], out: Console) -> None:
    """The outcome of ``models check``."""
    out.print(
        f"{result['name']}: {result['layers']} layers of {result['dim']}, {result['dtype']} on "
        f"{result['device']}",
    )
    for check in result["checks"]:
        out.print(
            f"  {'ok    ' if check['ok'] else 'FAILED'} {check['name']}: {check['deviation']:.1e} "
            f"(tolerance {check['tolerance']:.0e})",
        )


def render_verify(result: Mapping[str, Any], out: Console) -> None:
    """The outcome of ``store verify``."""
    out.print(
        f"{result['root']}: {result['shards']} shards, {human_bytes(result['n_bytes'])} are whole",
        soft_wrap=True,
    )
    for path in result["damaged"]:
        out.print(f"damaged, set aside: {path}", soft_wrap=True)


def render_audit(result: Mapping[str, Any], out: Console) -> None:
    """The outcome of ``audit``."""
    out.print(result["name"], style="bold", soft_wrap=True)
    for name, split in result["splits"].items():
        out.print(f"{name}: {split['rows']} rows")
        for kind, word in (("empty", "empty"), ("duplicates", "repeated"), ("over_long", "long")):
            _print_finding(f"{word} texts", split[kind], out)
        if split["conflicts"]:
            out.print(f"  texts with two labels or more: {split['conflicts']}")
        if not (split["conflicts"] or split["empty"]["count"] or split["duplicates"]["count"]):
            out.print("  no empty, repeated or conflicting texts")
        counts = ", ".join(
            f"{label}: {count}" for label, count in list(split["classes"].items())[:12]
        )
        more = len(split["classes"]) - 12
        tail = f" and {more} more" if more > 0 else ""
        out.print(f"  rows by class: {counts}{tail}", soft_wrap=True)
        if len(split["classes"]) == 1 and name != result["test_name"]:
            out.print("  one class only: a classifier needs two")
    _print_finding(f"rows of {result['test_name']} that are in train", result["leaks"], out)
    for kind in ("untested_classes", "unseen_classes", "small_classes"):
        if result[kind]:
            names = ", ".join(map(str, result[kind]))
            out.print(f"  {kind.replace('_', ' ')}: {names}", soft_wrap=True)


def _print_finding(name: str, finding: Mapping[str, Any], out: Console) -> None:
    if finding["count"]:
        rows = ", ".join(map(str, finding["rows"]))
        more = ", …" if finding["count"] > len(finding["rows"]) else ""
        out.print(f"  {name}: {finding['count']} (row {rows}{more}, counted from 0)")
