"""What ``compare`` tells a person in the terminal, from the same data that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerfuse.report.terminal_rows import percent, plain_table

__all__ = ["render_comparison"]

_WIDTH = 80  # columns of a terminal that nobody has widened
_PAIRS = 10
_ADDITIONS = 5


def render_comparison(result: Mapping[str, Any], out: Console) -> None:
    """The headline, the best pairs, what to add next, and texts that one of the best pair alone
    gets right."""
    headline = result["headline"]
    name = headline["measure"].replace("_", " ").capitalize()
    line = f"{name} {headline['value']:+.4f}: {headline['a']} + {headline['b']}"
    out.print(Text(line, "bold"), soft_wrap=True)
    out.print(Text.assemble(("Verdict: ", "bold"), result["verdict"]["sentence"]), soft_wrap=True)
    out.print()
    out.print(_pair_table(result["pairs"][:_PAIRS], result["n"]), width=_WIDTH)
    hidden = len(result["pairs"]) - _PAIRS
    if hidden > 0:
        out.print(f"and {hidden} more, which --json lists\n")
    if result["additions"]:
        out.print(_addition_table(result), width=_WIDTH)
    for block in dict.fromkeys(example["right"] for example in result["examples"]):
        out.print(f"Right with {block} alone, for example:", style="bold", soft_wrap=True)
        for example in result["examples"]:
            if example["right"] == block:
                out.print(_example(example))


def _pair_table(pairs: Sequence[Mapping[str, Any]], n_rows: int) -> Table:
    """Two lines for each pair: one for each block, and below a number its uncertainty."""
    table = _table(f"Pairs (leave-one-out on {n_rows} training rows)", "blocks")
    for name in ("alone", "fused", "gain, points", "loss gain", "CKA", "Q", "either"):
        table.add_column(name, justify="right")
    for pair in pairs:
        table.add_row(
            f"{pair['a']}\n{pair['b']}",
            f"{percent(pair['accuracy_a'])}\n{percent(pair['accuracy_b'])}",
            percent(pair["accuracy"]),
            _points(pair["gain"], "\n"),
            f"{pair['loss_gain']:+.4f}\n± {pair['loss_gain_se']:.4f}",
            f"{pair['cka']:.2f}",
            f"{pair['yules_q']:.2f}",
            percent(pair["oracle_accuracy"]),
        )
    return table


def _addition_table(result: Mapping[str, Any]) -> Table:
    """The best blocks to add, and the best one of every encoder that is not in use."""
    table = _table(f"What to add next to {', '.join(result['pipeline'])}", "block")
    for name in ("accuracy", "gain, points", "loss gain", ""):
        table.add_column(name, justify="right" if name else "left")
    seen: set[str] = set()
    for place, addition in enumerate(result["additions"]):
        encoder = addition["block"].rsplit(":", 2)[0]
        first = addition["new_encoder"] and encoder not in seen
        seen.add(encoder)
        if place < _ADDITIONS or first:
            table.add_row(
                addition["block"],
                percent(addition["accuracy"]),
                _points(addition["gain"], " "),
                f"{addition['loss_gain']:+.4f} ± {addition['loss_gain_se']:.4f}",
                "new encoder" if addition["new_encoder"] else "",
            )
    return table


def _table(title: str, first: str) -> Table:
    table = plain_table(title)
    table.add_column(first, overflow="fold")
    return table


def _example(example: Mapping[str, Any]) -> Text:
    """One line of the text with its row and label, cut where the terminal ends."""
    line = f"  {example['row']} [{example['label']}] {example['text']}"
    printable = "".join(sign if sign.isprintable() else " " for sign in line)
    text = Text(f"  {' '.join(printable.split())}")
    text.truncate(_WIDTH, overflow="ellipsis")
    return text


def _points(gain: Mapping[str, float], separator: str) -> str:
    value, low, high = (100 * gain[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f}{separator}({low:+.1f} to {high:+.1f})"
