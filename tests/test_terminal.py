"""What a terminal of 80 columns shows, what a pipe gets, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import layerfuse
from commandline import rows, run, start, succeed, write_csv
from families import save_model
from helpers import Notes
from layerfuse import LayerFusionClassifier
from layerfuse.cli.console import TerminalReporter, console
from layerfuse.errors import NoMemoryError
from layerfuse.progress import Advance, reporting_to

pytestmark = pytest.mark.slow

COLUMNS = 80
N_ROWS = 320  # enough for fusions to be compared
PLAIN = ("--fusion", "concat", "--head", "ridge")  # without the search for others
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-9]|9[0-7])[0-9;]*m")  # foreground colours
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMANDS = (
    *("fit", "profile", "compare", "curve", "extract", "predict", "evaluate", "demo"),
    *("models list", "models pull", "models check"),
    *("datasets list", "datasets pull", "audit", "report"),
    *("store ls", "store verify", "store prune"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "train.csv", rows(N_ROWS))
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def in_terminal(*args: object, **environment: str) -> str:
    """Everything that a terminal of 80 columns is sent by ``layerfuse ARGS``."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TERM": "xterm-256color", **environment}.items():
            patch.setenv(name, value)
        process = start(*args, cwd=Path.cwd(), stream=theirs)
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65_536):
            sent += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, sent.decode()
    return sent.decode()


def quick(model: Path) -> tuple[object, ...]:
    # two encoders with names as long as the longest of the catalog
    encoders = ("-e", f"smollm2-135m={model}", "-e", f"mpnet={model}")
    return ("fit", "train.csv", *encoders, "--cv", 2, "--out", "run")


class TestAt80Columns:
    def test_a_fit_shows_bars_colours_and_tables_that_fit(self, model: Path):
        sent = in_terminal(*quick(model))
        for step in ("loading", "reading", "scoring", "searching blocks", "training"):
            assert step in sent, step
        assert "nested resampling" in sent
        assert "baselines" in sent
        assert COLOUR.search(sent)
        lines = [ESCAPE.sub("", line).rstrip("\r\n") for line in sent.split("\n")]
        drawn = [part for line in lines for part in line.split("\r") if "━" in part]
        assert drawn
        assert max(map(len, drawn)) <= COLUMNS
        start = next(n for n, line in enumerate(lines) if line.startswith("Leave-one-out"))
        end = next(n for n, line in enumerate(lines) if line.startswith("Verdict: "))
        assert max(len(line) for line in lines[start:end]) <= COLUMNS
        assert not any("…" in line for line in lines[start:end])

    def test_no_color_leaves_the_bars(self, model: Path):
        sent = in_terminal("profile", "train.csv", "-e", model, NO_COLOR="1")
        assert not COLOUR.search(sent)
        assert "━" in sent

    def test_quiet_leaves_the_result(self, model: Path):
        sent = in_terminal("profile", "train.csv", "-e", model, "--quiet")
        assert "Blocks by loss" in sent
        assert "━" not in sent
        assert "· " not in sent

    @pytest.mark.parametrize("command", ["models list", "datasets list"])
    def test_lists_fit(self, command: str):
        lines = ESCAPE.sub("", in_terminal(*command.split())).splitlines()
        assert max(map(len, lines)) <= COLUMNS


class TestPiped:
    def test_nothing_but_text(self, model: Path):
        process = start(*quick(model), *PLAIN, "--verbose", cwd=Path.cwd())
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "\x1b" not in out + err
        assert "\r" not in out + err
        for step, unit in (
            ("reading smollm2-135m", "320 texts in"),
            ("scoring", "8 blocks in"),
            ("searching blocks, fusion and head", r"\d+ folds in"),
            ("nested resampling", r"\d+ fits in"),
            ("baselines", r"\d+ baselines in"),
            ("training", ""),
            ("loading smollm2-135m", ""),
        ):
            assert re.search(rf"^· {step}: {unit}.*\d s", err, re.MULTILINE), step

    def test_without_verbose_steps_are_not_lines(self, model: Path):
        done = succeed(*quick(model), *PLAIN)
        assert "texts in" not in done.err
        assert "· chosen: " in done.err

    def test_a_long_step_says_how_far_it_is(self, model: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("layerfuse.cli.console._LINE_S", 0)
        done = succeed(*quick(model), *PLAIN)
        counts = re.findall(
            r"^· reading smollm2-135m: (\d+) of 320 texts, .+ left$", done.err, re.MULTILINE
        )
        assert len(counts) > 1
        assert counts == sorted(counts, key=int)
        assert int(counts[-1]) == 320


class TestHowMuchIsSaid:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_can_be_quiet_and_verbose(self, command: str):
        text = succeed(*command.split(), "--help").out
        assert "--quiet" in text
        assert "--verbose" in text

    def test_not_both(self, model: Path):
        done = run(*quick(model), "--quiet", "--verbose")
        assert done.code == 2
        assert "Mutually exclusive arguments: {--quiet, --verbose}" in done.err
        assert not Path("run").exists()

    def test_each_decision_is_a_line(self, model: Path):
        """Candidates, dtype, device, cut texts, blocks and why, fusion and head and why, leaks."""
        write_csv(Path("test.csv"), rows(N_ROWS)[:9])
        done = succeed(*quick(model), "--max-length", 6, "--test", "test.csv")
        for said in (
            r"9 of 9 test texts are training texts too",
            r"mpnet: 4 candidate blocks \(layers 0 to 3; mean\), \w+ on \w+",
            r"[\d.]+% of training texts were cut, .*mpnet: 6 tokens.*--windows",
            r"chosen: .*:\d:mean.* \(greedy, ",
            r"fusion \w+, head \w+: ",
        ):
            assert re.search(rf"^· {said}", done.err, re.MULTILINE), said

    def test_a_head_that_is_not_used_is_said(self, model: Path):
        texts, labels = zip(*rows(60), strict=True)
        notes = Notes()
        classifier = LayerFusionClassifier([f"tiny={model}"], fusion="gated", head="logistic", cv=2)
        with reporting_to(notes):
            classifier.fit(texts, labels)
        assert notes.about("head='logistic'")


STAGES = (
    *("loading bert", "reading bert", "scoring", "searching blocks, fusion and head"),
    *("nested resampling", "training", "baselines", "timing pipelines"),
)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_in_any_stage_can_be_gone_on_from(
    model: Path, stage: str, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C as the stage begins; the command that is printed then does the whole."""
    whole = TerminalReporter.task

    @contextlib.contextmanager
    def task(self: TerminalReporter, name: str, total: int, unit: str) -> Iterator[Advance]:
        with whole(self, name, total, unit) as advance:
            if name.startswith(stage):
                raise KeyboardInterrupt
            yield advance

    before = sorted(path.name for path in Path.cwd().iterdir())
    arguments = ("fit", "train.csv", "-e", str(model), "--cv", "2", "--out", "run")
    if stage != "searching blocks, fusion and head":
        arguments += PLAIN
    with monkeypatch.context() as patch:
        patch.setattr(TerminalReporter, "task", task)
        done = run(*arguments)
    assert (done.code, done.out) == (130, "")
    *_, said, command = done.err.splitlines()
    assert said == "layerfuse: interrupted. Finished embeddings are kept. To resume:"
    assert shlex.split(command) == ["layerfuse", *arguments]
    assert "Traceback" not in done.err
    assert ("bert: stopped with 0 of" in done.err) == (stage == "reading bert")
    left = {path.name for path in Path.cwd().iterdir()} - {"cache"}
    assert left == set(before) - {"cache"}
    assert not list(Path.cwd().rglob("*.tmp"))
    again = succeed(*shlex.split(command)[1:])
    if STAGES.index(stage) > 1:
        assert "bert: 320 of 320 distinct texts are in the store" in again.err


def test_other_commands_start_again(monkeypatch: pytest.MonkeyPatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("layerfuse.commands.assets.list_models", interrupted)
    done = run("models", "list")
    assert done.code == 130
    assert done.err == "layerfuse: interrupted. To start again:\n  layerfuse models list\n"


def test_memory_that_ends_anywhere_is_no_internal_fault(monkeypatch: pytest.MonkeyPatch):
    def greedy() -> None:
        bytearray(1 << 62)

    monkeypatch.setattr("layerfuse.commands.assets.list_models", greedy)
    done = run("models", "list")
    assert (done.code, done.out) == (2, "")
    assert "no memory left" in done.err
    assert "--sample" in done.err
    assert "Traceback" not in done.err


def test_one_text_that_does_not_fit_is_said(model: Path, monkeypatch: pytest.MonkeyPatch):
    """The batch of one is what cannot be halved."""
    import torch

    encoder = layerfuse.FrozenEncoder.from_pretrained(model, device="cpu", dtype="float32")

    def full(*args: Any) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(encoder, "launch", full)
    with pytest.raises(NoMemoryError, match=r"bert has no memory left to read one text.*--max-len"):
        layerfuse.extract(["a film", "the plot"], encoder)


def test_output_that_is_redirected_is_utf8(tmp_path: Path) -> None:
    """Whatever the encoding of the console: 😀 is in none of Windows's."""
    write_csv(tmp_path / "a.csv", [(f"text {row}", "\U0001f600") for row in range(4)])
    done = subprocess.run(
        [sys.executable, "-m", "layerfuse", "audit", "a.csv"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        env={
            **os.environ,
            "PYTHONIOENCODING": "cp1252",
            "PYTHONPATH": str(Path(layerfuse.__file__).parents[1]),
        },
    )
    assert "\U0001f600: 4" in done.stdout.decode("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_behind_standard_output(tmp_path: Path, options: tuple[str, ...]) -> None:
    write_csv(tmp_path / "a.csv", [(f"text {row}", "label") for row in range(4)])
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerfuse", "audit", "a.csv", *options],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(layerfuse.__file__).parents[1])},
        )
    assert done.returncode == 2
    assert done.stderr.startswith("layerfuse: there is no room")
    assert len(done.stderr.splitlines()) == 1


STEERING = "\x1b[31m\x1b]0;title\x07\x9b2J\u202egnp.exe\b\b\r"


def test_texts_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [(f"text {row}", STEERING) for row in range(3)]
    write_csv(tmp_path / "a.csv", data, ("text", "label"))
    write_csv(tmp_path / "b.csv", data, (STEERING, "label"))
    console().print(STEERING)
    TerminalReporter().note(STEERING)
    for shown in capsys.readouterr():
        assert not set(shown) & set("\x1b\x07\x9b\u202e\b\r")
        assert "\\u001b" in shown
    for arguments in (("audit", "a.csv"), ("audit", "b.csv"), ("audit", STEERING)):
        done = run(*arguments)
        assert not set(done.out + done.err) & set("\x1b\x07\x9b\u202e\b\r")
