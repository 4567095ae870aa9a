"""Running the command line inside this process, and small files to run it on."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from layerfuse.cli import main
from processes import Child

LABELS = {"good, very": ("good", "great"), "schlecht ü": ("bad", "awful"), "news": ("oil", "trade")}
"""Labels with a comma, spaces and an umlaut, and the words that give each away."""
_FILLING = ("the", "a", "film", "is", "was", "plot", "story", "of", "and", "very", "market", "bank")

Row = tuple[str, str]


@dataclass(frozen=True)
class Done:
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output; anything beside it fails."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def run(*args: object) -> Done:
    """Run ``layerfuse ARGS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["layerfuse", *map(str, args)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main()
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*args: object) -> Done:
    """Run a command that must end with 0."""
    done = run(*args)
    assert done.code == 0, done.err
    return done


def start(*args: object, cwd: Path, **options: Any) -> Child:
    """Start ``layerfuse ARGS`` as a process of its own, its outputs piped."""
    return Child(_command, *args, cwd=cwd, **options)


def _command(*words: str) -> int:
    sys.argv = ["layerfuse", *words]
    return main()


def rows(n: int, *, seed: int = 0, labels: Iterable[str] = LABELS) -> list[Row]:
    """``n`` different texts with labels in turn; every text holds a word of its label."""
    rng, names = random.Random(seed), list(labels)  # noqa: S311  # not for secrets
    made: dict[str, str] = {}
    while len(made) < n:
        label = names[len(made) % len(names)]
        words = [*rng.choices(_FILLING, k=rng.randint(3, 12)), rng.choice(LABELS[label])]
        rng.shuffle(words)
        made.setdefault(" ".join(words), label)
    return list(made.items())


def write_csv(path: Path, data: Sequence[Row], header: Row = ("text", "label")) -> Path:
    """A CSV file, packed when its name ends in .gz."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *data])
    return write_text(path, text.getvalue())


def write_jsonl(path: Path, data: Sequence[Row]) -> Path:
    """A JSON Lines file, packed when its name ends in .gz."""
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in data)
    return write_text(path, "".join(lines))


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = text.encode()
    path.write_bytes(gzip.compress(packed) if path.suffix == ".gz" else packed)
    return path
