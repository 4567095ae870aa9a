"""``--no-texts``: no word of a user's texts is in anything that is written."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commandline import Row, rows, run, succeed, write_csv
from families import TinyModels

WORDS = [f"secret{letter}word" for letter in "abcdefghijklmnop"]


def private_rows(n: int, seed: int) -> list[Row]:
    """Rows with a word or two that nothing but a text can have brought into a file."""
    draw = random.Random(seed)  # noqa: S311  # not for secrets
    return [(f"{text} {' '.join(draw.sample(WORDS, 2))}", label) for text, label in rows(n)]


def words_in(folder: Path) -> set[str]:
    """The words that are in some file below a folder, in upper or lower case."""
    found = b""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":  # compressed
            found += str(pq.read_table(path).to_pydict()).encode()
        elif path.is_file():
            found += path.read_bytes()
    return {word for word in WORDS if word.encode() in found.lower()}


@pytest.fixture
def fitted(tiny: TinyModels, tmp_path: Path) -> list[object]:
    """Arguments of a fit that has all that a report can show: near-duplicates, leaks, errors."""
    train = private_rows(80, 0)
    test = [*private_rows(40, 1), *((f"{text} indeed", label) for text, label in train[:20])]
    data = write_csv(tmp_path / "data" / "train.csv", train)
    others = write_csv(tmp_path / "data" / "test.csv", [*test, *train[:5]])
    few = ["--cv", 2, "--fusion", "concat", "--head", "ridge", "--coverage", 0.9]
    encoder = ["-e", f"bert={tiny('bert')}", "--store", tmp_path / "written" / "store"]
    return ["fit", data, "--test", others, *few, *encoder]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--verbose"]], ids=["notes", "verbose"])
def test_no_word_is_in_any_file_or_note(fitted: list[object], tmp_path: Path, options: list[str]):
    written = tmp_path / "written"
    done = succeed(*fitted, "--no-texts", "--out", written / "run", *options)
    assert (written / "run" / "report.html").exists()
    assert (written / "run" / "rows.parquet").exists()
    assert words_in(written) == set()
    assert not [word for word in WORDS if word in (done.out + done.err).lower()]
    assert "--no-texts" in done.err


@pytest.mark.slow
def test_without_it_the_report_shows_texts_and_the_bundle_does_not(
    fitted: list[object], tmp_path: Path
):
    succeed(*fitted, "--out", tmp_path / "written" / "run")
    assert words_in(tmp_path / "written" / "run") == set(WORDS)
    assert words_in(tmp_path / "written" / "run" / "bundle") == set()
    assert words_in(tmp_path / "written" / "store") == set()


def test_a_bundle_cannot_keep_texts_and_leave_them_out(fitted: list[object], tmp_path: Path):
    done = run(*fitted, "--no-texts", "--explain", "--out", tmp_path / "written" / "run")
    assert done.code == 2
    assert "--explain" in done.err
    assert not (tmp_path / "written").exists()


@pytest.mark.slow
@pytest.mark.parametrize("texts", [True, False])
def test_an_audit_of_labels(tiny: TinyModels, tmp_path: Path, texts: bool):
    data = write_csv(tmp_path / "train.csv", private_rows(60, 0))
    few = ["-e", f"bert={tiny('bert')}", "--store", tmp_path / "store"]
    few += [] if texts else ["--no-texts"]
    out = tmp_path / "written" / "doubts.csv"
    out.parent.mkdir()
    done = succeed("audit", data, "--labels", *few, "--out", out)
    assert words_in(out.parent) == (set(WORDS) if texts else set())
    assert texts or not [word for word in WORDS if word in done.out + done.err]
