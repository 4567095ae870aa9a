"""What README, documentation and examples tell people to type does what they say.

Blocks of a page run in order, in a folder with small files of the names that the pages use. A block
that cannot run has ``<!-- not run: REASON -->`` above it, and is only parsed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import layerfuse
from commandline import Row, rows, run, start, write_csv, write_text
from layerfuse.data import encoder_path
from layerfuse.report.run_report import read_run_report

_ROOT = Path(__file__).parents[1]
_DOCS, _EXAMPLES = _ROOT / "docs", _ROOT / "examples"
_PAGES = [_ROOT / "README.md", *sorted(_DOCS.glob("*.md"))]
_WALK = _DOCS / "helpdesk.md"
_FENCE = re.compile(r"^```(.*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_MOST_NOT_RUN = 11
_SHOWN = {"text", "{toctree}", "{eval-rst}"}  # output, and what Sphinx reads
_PORT = 8765  # in place of the pages' 8000, on which something of the user's may listen
_LABELS = ("good, very", "schlecht ü")


@dataclass(frozen=True)
class Block:
    """Code between fences; ``line`` is that of its opening fence, from 1."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(_ROOT)}, line {self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> Iterator[Block]:
    opened: tuple[int, str] | None = None
    code: list[str] = []
    above = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened, code = (number, fence[1]), []
        elif fence and opened is not None:
            reason = _NOT_RUN.match(above)
            text = "".join(f"{own}\n" for own in code)
            yield Block(page, *opened, text, reason[1] if reason else None)
            opened, above = None, ""
        elif opened is not None:
            code.append(line)
        else:
            above = line or above
    assert opened is None, f"{page.name}: the fence of line {opened} is never closed"


_BLOCKS = [block for page in _PAGES for block in blocks_of(page)]


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {"python", "sh", "toml", *_SHOWN}
    assert [block.place for block in _BLOCKS if block.language not in kinds] == []


@pytest.mark.parametrize("block", [b for b in _BLOCKS if b.reason], ids=lambda b: b.place)
def test_what_cannot_run_can_be_read(block: Block) -> None:
    if block.language == "python":
        compile(block.code, block.place, "exec")
    else:
        assert block.commands


def test_little_is_left_out_of_the_tests() -> None:
    left_out = [f"{block.place}: {block.reason}" for block in _BLOCKS if block.reason]
    assert len(left_out) <= _MOST_NOT_RUN, left_out


@pytest.mark.parametrize("block", [b for b in _BLOCKS if b.language == "sh"], ids=lambda b: b.place)
def test_commands_and_options_are_those_of_the_program(block: Block) -> None:
    """Also of blocks that do not run; what each option does is tested elsewhere."""
    reference = (_DOCS / "cli.md").read_text(encoding="utf-8")
    helps = dict(re.findall(r"^## (layerfuse [^\n]+)\n\n```text\n(.*?)```", reference, re.M | re.S))
    for words in block.commands:
        if words[0] != "layerfuse":
            continue
        name = next((name for n in (3, 2) if (name := " ".join(words[:n])) in helps), None)
        assert name, f"{block.place}: there is no command {' '.join(words[:2])}"
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", helps[name]))
        used = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
        assert used <= known, f"{block.place}: {name} has no {sorted(used - known)}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [link.partition("#")[0] for link in _LINK.findall(text) if "://" not in link]
    assert [link for link in targets if link and not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_reference_is_that_of_the_program() -> None:
    assert runpy.run_path(str(_DOCS / "reference.py"))["make_page"]() == (
        (_DOCS / "cli.md").read_text(encoding="utf-8")
    )


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    folders = ["-d", str(tmp_path / "trees"), str(_DOCS), str(tmp_path / "html")]
    built = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("html/*.html")}
    assert {f"{page.stem}.html" for page in _PAGES[1:]} <= set(pages)
    missing = [name for name in layerfuse.__all__ if f"layerfuse.{name}" not in pages["api.html"]]
    missing.remove("LayerfuseError")  # stands there by its home
    assert missing == []
    assert "<math" in pages["how_it_works.html"]
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css))', "".join(pages.values()))
    assert loaded == [], "pages load nothing from elsewhere"


@pytest.fixture(scope="session")
def models(users_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the user's encoders and a store of its own.

    mpnet and e5-small are links to minilm: the pages' commands want encoders of these names, and
    400 MB each would add nothing to what is tested here. What was unpacked from a GGUF file is the
    user's too.
    """
    cache = tmp_path_factory.mktemp("docs-cache")
    (cache / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFUSE_CACHE", str(users_cache))
        minilm = encoder_path("minilm")
        places = {
            "models/minilm": minilm,
            "models/mpnet": minilm,
            "models/e5-small": minilm,
            "models/smollm2-135m": encoder_path("smollm2-135m").parent,
            "gguf": users_cache / "gguf",
        }
    (users_cache / "gguf").mkdir(exist_ok=True)
    for name, place in places.items():
        (cache / name).symlink_to(place.resolve(), target_is_directory=True)
    return cache


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page, with the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERFUSE_CACHE", str(models))
    (tmp_path / "cache").symlink_to(models, target_is_directory=True)
    train, test = rows(48, labels=_LABELS), rows(24, seed=1, labels=_LABELS)
    write_csv(tmp_path / "reviews.csv", train)
    write_csv(tmp_path / "labelled.csv", test)
    write_csv(tmp_path / "data" / "train.csv", train)
    write_csv(tmp_path / "data" / "test.csv", test)
    write_text(tmp_path / "new.csv", "".join(f"{text}\n" for text in ["text", *_texts(test)]))
    stories = "".join(f"{n},{text},{n % 2}\n" for n, text in enumerate(_texts(train)))
    write_text(tmp_path / "stories.csv", f"id,story,topic\n{stories}")
    tickets = "".join(
        f"t{n},{text.split()[0]},{text},{label},{n // 2},{9 + n % 7},{'free' if n % 3 else 'pro'}\n"
        for n, (text, label) in enumerate(rows(48, labels=["news", "schlecht ü"]))
    )
    write_text(
        tmp_path / "tickets.csv", f"ticket,subject,body,topic,customer,amount,plan\n{tickets}"
    )
    genres = [["comedy"], ["comedy", "crime"], [], ["crime"]] * 12
    films = list(zip(_texts(train), genres, strict=True))
    write_csv(tmp_path / "films.csv", [(text, ";".join(own)) for text, own in films])
    lines = (json.dumps({"text": text, "label": own}) + "\n" for text, own in films)
    write_text(tmp_path / "films.jsonl", "".join(lines))
    flags = (f"{text},{'comedy' in own:d},{'crime' in own:d}\n" for text, own in films)
    write_text(tmp_path / "genres.csv", "text,comedy,crime\n" + "".join(flags))
    (gguf,) = (models / "models" / "smollm2-135m").glob("*.gguf")
    (tmp_path / "model.gguf").symlink_to(gguf.resolve())
    return tmp_path


def _texts(data: Sequence[Row]) -> list[str]:
    return [text for text, _ in data]


@pytest.mark.index
@pytest.mark.parametrize("page", [p for p in _PAGES if p != _WALK], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_page(page, folder, monkeypatch)


@pytest.mark.index
def test_the_helpdesk_ends_as_its_page_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert float(_run_page(_WALK, folder, monkeypatch)["score"]) > 0.96  # type: ignore[arg-type]
    spoiled = {row["ticket"] for row in _read("spoiled.csv")}
    suspects = {row["id"] for row in _read("doubts.csv") if row["suspect"] == "true"}
    assert len(spoiled) == 27
    assert len(spoiled & suspects) >= 20
    assert len(suspects - spoiled) <= 12
    first, last = (read_run_report(Path("runs", name)) for name in ("first", "helpdesk"))
    assert first.data.learned_rows == last.data.learned_rows == 570
    assert first.abstention
    assert first.abstention.cv.abstained.value == 1
    assert last.abstention
    assert last.abstention.cv.abstained.value < 0.15
    decided = _read("decided.csv")
    kept = [row["label"] == row["queue"] for row in decided if row["abstain"] == "false"]
    assert len(decided) == 200
    assert len(kept) >= 170
    assert sum(kept) >= 0.95 * len(kept)


def _read(name: str) -> list[dict[str, str]]:
    with Path(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run its blocks; what the Python of them left."""
    namespace: dict[str, object] = {}
    with contextlib.ExitStack() as servers:
        for block in blocks_of(page):
            if block.reason is not None or block.language in _SHOWN:
                continue
            if block.language == "toml":
                write_text(folder / "settings.toml", block.code)
            elif block.language == "python":
                _execute(block, namespace)
            else:
                for words in block.commands:
                    _command(block, words, monkeypatch, servers)
    return namespace


def _execute(block: Block, namespace: dict[str, object]) -> None:
    """Lines are numbered as in the page, so that a traceback names them."""
    code = compile("\n" * block.line + block.code, str(block.page), "exec")
    with contextlib.redirect_stdout(None):
        exec(code, namespace)  # noqa: S102  # our own pages


def _command(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch, servers: contextlib.ExitStack
) -> None:
    words = [word.replace("8000", str(_PORT)) for word in words]
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        monkeypatch.setenv(name, value)
    elif words[0] == "python":
        with contextlib.redirect_stdout(None):
            runpy.run_path(str(_ROOT / words[1]), run_name="__main__")
    elif words[0] == "curl":
        wait = ["--retry", "240", "--retry-delay", "1", "--retry-connrefused"]
        asked = [*words, "--fail", "--silent", *wait]
        answer = subprocess.run(asked, capture_output=True, check=True, timeout=300)
        assert "predictions" in json.loads(answer.stdout), block.place
    elif words[-1] == "&":
        process = servers.enter_context(start(*words[1:-1], cwd=Path.cwd()))
        servers.callback(process.terminate)
    else:
        assert words[0] == "layerfuse", f"{block.place}: {words[0]} cannot run here; mark the block"
        done = run(*words[1:])
        assert done.code == 0, f"{block.place}: {shlex.join(words)}: {done.code}\n{done.err}"


@pytest.mark.index
@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.index
@pytest.mark.parametrize("path", sorted(_EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_cells_of_a_notebook_run(path: Path, folder: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    for number, cell in enumerate(cells, start=1):
        code = compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec")
        with contextlib.redirect_stdout(None):
            exec(code, namespace)  # noqa: S102  # our own notebook


def test_examples_are_numbered() -> None:
    names = [path.name for path in sorted(_EXAMPLES.iterdir()) if path.suffix in (".py", ".ipynb")]
    assert [name.partition("_")[0] for name in names] == ["1", "2", "3", "4"]
    assert names[-1].endswith(".ipynb")
