"""What `report` writes and refuses, and what `fit` leaves for it."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import validate
from rich.console import Console

from benchmarks.report import make_run
from commandline import Done, rows, run, succeed, write_csv
from families import TinyModels
from layerfuse import load, load_dataset
from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.report.html import write_page
from layerfuse.report.results import ProfileResult, TrainingData
from layerfuse.report.run_report import RunReport, read_run_report
from layerfuse.report.tables import baseline_name, interval, percent, points
from layerfuse.report.terminal import render

QUICK = ["--cv", 2, "--fusion", "concat", "--head", "ridge", "--pooling", "mean,last"]


@pytest.fixture(scope="module")
def place(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with the run of a fit, and what the fit said."""
    root = tmp_path_factory.mktemp("report")
    data = [*rows(60), *rows(5)]
    write_csv(root / "train.csv", data)
    write_csv(root / "test.csv", [*rows(40, seed=1), *rows(4)])
    files = [root / "train.csv", "--test", root / "test.csv", "--store", root / "store"]
    return root, succeed("fit", *files, "-e", tiny("bert"), *QUICK, "--out", root / "run")


@pytest.mark.slow
def test_a_fit_writes_the_page_and_says_where(place: tuple[Path, Done]):
    root, done = place
    assert (root / "run" / "report.html").stat().st_size < 6e6
    assert f"report: {root / 'run' / 'report.html'}" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "file"])
def test_a_fit_without_a_report(
    tiny: TinyModels, place: tuple[Path, Done], tmp_path: Path, how: str
):
    root, _ = place
    (tmp_path / "fit.toml").write_text("report = false\n", encoding="utf-8")
    refused = ["--no-report"] if how == "option" else ["--config", tmp_path / "fit.toml"]
    files = [root / "train.csv", "--store", root / "store", "--out", tmp_path / "run"]
    done = succeed("fit", *files, "-e", tiny("bert"), *QUICK, *refused)
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report.html" not in done.err
    assert succeed("report", tmp_path / "run").code == 0


def test_without_the_extra_a_fit_goes_on_and_says_how_to_have_it(
    tiny: TinyModels,
    place: tuple[Path, Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    root, _ = place
    monkeypatch.setitem(sys.modules, "altair", None)  # as if it were not installed
    files = [root / "train.csv", "--store", root / "store", "--out", tmp_path / "run"]
    done = succeed("fit", *files, "-e", tiny("bert"), *QUICK)
    (line,) = [line for line in done.err.splitlines() if "report" in line]
    assert "pip install 'layerfuse[report]'" in line
    assert not (tmp_path / "run" / "report.html").exists()
    alone = run("report", root / "run", "--out", tmp_path / "x.html")
    assert alone.code == 2
    assert "pip install 'layerfuse[report]'" in alone.err


@pytest.mark.slow
def test_report_with_figures_as_json(place: tuple[Path, Done], tmp_path: Path):
    root, _ = place
    options = ["--out", tmp_path / "page.html", "--figures", tmp_path / "figures", "--json"]
    made = succeed("report", root / "run", *options).json
    assert made["report"] == str(tmp_path / "page.html")
    assert made["n_bytes"] == (tmp_path / "page.html").stat().st_size
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {Path(name).name for name in made["figures"]}
    assert {"gains.svg", "gains.png", "curve-0.svg", "confusion.png"} <= names


def test_people_are_told_where_the_page_is(place: tuple[Path, Done], tmp_path: Path):
    done = succeed("report", place[0] / "run", "--out", tmp_path / "page.html")
    assert done.out.startswith(f"report: {tmp_path / 'page.html'}")


def predicted(run: Path, name: str) -> dict[str, np.ndarray]:
    """Columns of ``rows.parquet``, of ``cv`` or ``test``."""
    table = pq.read_table(run / "rows.parquet", filters=[("measured", "=", name)])
    return {column: table[column].to_numpy() for column in table.column_names[1:]}


def test_rows_are_what_the_saved_classifier_predicts(place: tuple[Path, Done]):
    root, _ = place
    classifier = load(root / "run" / "bundle")
    test = load_dataset(str(root / "test.csv"), labeled=True).splits["train"]
    proba = classifier.predict_proba(test.texts)
    found = predicted(root / "run", "test")
    assert classifier.classes_[found["predicted"]].tolist() == list(classifier.predict(test.texts))
    assert classifier.classes_[found["truth"]].tolist() == list(test.labels or ())
    own = proba[np.arange(len(proba)), found["truth"]]
    # the store keeps float16
    np.testing.assert_allclose(found["confidence"], proba.max(axis=1), atol=0.02)
    np.testing.assert_allclose(found["label_probability"], own, atol=0.02)


def test_rows_agree_with_the_report(place: tuple[Path, Done]):
    report = read_run_report(place[0] / "run")
    assert report.test is not None
    for name, metrics in (("cv", report.cv), ("test", report.test)):
        found = predicted(place[0] / "run", name)
        assert len(found["truth"]) == metrics.n
        correct = found["truth"] == found["predicted"]
        assert correct.mean() == pytest.approx(metrics.accuracy.value)
        assert len(report.baselines) > 5
        for item in report.baselines:
            own = found[item.name if item.encoder is None else f"{item.name}:{item.encoder}"]
            score = item.on(name)
            assert (own == found["truth"]).mean() == pytest.approx(score.accuracy.value)
            assert (correct.mean() - (own == found["truth"]).mean()) == pytest.approx(
                score.gain.difference
            )


@pytest.mark.slow
def test_the_report_is_what_json_prints_and_fits_its_schema(
    tiny: TinyModels, place: tuple[Path, Done], tmp_path: Path
):
    root, _ = place
    files = [root / "train.csv", "--store", root / "store", "--out", tmp_path / "run"]
    done = succeed("fit", *files, "-e", tiny("bert"), *QUICK, "--no-report", "--json")
    saved = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert done.json == saved
    path = Path(__file__).parents[1] / "docs" / "run_report.schema.json"
    validate(saved, json.loads(path.read_text(encoding="utf-8")))
    report = RunReport.model_validate(saved)
    assert report == read_run_report(tmp_path / "run")
    assert report.test is None
    assert report.verdict.rows == "cv"


def test_the_diagnosis_says_what_is_hard_doubled_and_measured(place: tuple[Path, Done]):
    root, _ = place
    report, found = read_run_report(root / "run"), predicted(root / "run", "cv")
    train = load_dataset(str(root / "train.csv"), labeled=True).splits["train"]
    hardest = report.diagnosis.hardest
    lowest = sorted(found["label_probability"])[: len(hardest.texts)]
    assert [text.label_probability for text in hardest.texts] == pytest.approx(lowest)
    for text in hardest.texts:
        assert train.texts[text.row] == text.text
        assert train.labels is not None
        assert train.labels[text.row] == text.label
    assert hardest.wrong == int((found["truth"] != found["predicted"]).sum())
    assert report.data.audit.leaks.count == 4


def write_tickets(path: Path, ids: Sequence[object], data: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = zip(ids, *zip(*data, strict=True), strict=True)
        csv.writer(file).writerows([("ticket", "text", "label"), *lines])
    return path


def test_rows_and_ids_are_those_of_the_file(tiny: TinyModels, tmp_path: Path):
    """Though rows without a label are skipped, and but a sample of the others is learned from."""
    labeled = [(text, label if row % 4 else "") for row, (text, label) in enumerate(rows(80))]
    ids = [f"T-{row}" for row in range(80)]
    path = write_tickets(tmp_path / "tickets.csv", ids, labeled)
    others = write_tickets(tmp_path / "test.csv", range(1, 6), rows(5, seed=1))
    options = ["--id-column", "ticket", "--text-column", "text", "--label-column", "label"]
    options += ["--test", others, "--sample", 40, "--store", tmp_path / "store"]
    options += ["--out", tmp_path / "run"]
    succeed("fit", path, "-e", tiny("bert"), *QUICK, *options)
    report, kept = read_run_report(tmp_path / "run"), predicted(tmp_path / "run", "cv")
    assert [ids[row] for row in kept["row"]] == kept["id"].tolist()
    assert len(kept["row"]) < 60 <= max(kept["row"])
    assert predicted(tmp_path / "run", "test")["id"].tolist() == list("12345")
    diagnosis = report.diagnosis
    for text in (*diagnosis.hardest.texts, *diagnosis.class_texts):
        assert (text.text, text.label) == labeled[text.row]
        assert text.id == ids[text.row]
    first = diagnosis.hardest.texts[0]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"{first.row}: {first.id}" in page


def test_confusion_and_calibration_count_every_test_row(place: tuple[Path, Done]):
    report = read_run_report(place[0] / "run")
    assert report.test is not None
    cells, bins = report.diagnosis.confusion, report.diagnosis.calibration
    assert sum(cell.count for cell in cells) == sum(row.count for row in bins) == report.test.n
    hits = sum(cell.count for cell in cells if cell.truth == cell.predicted)
    assert hits / report.test.n == pytest.approx(report.test.accuracy.value)
    shares = sum(row.count * row.accuracy.value for row in bins) / report.test.n
    assert shares == pytest.approx(report.test.accuracy.value)


def test_pipelines_are_timed_side_by_side(place: tuple[Path, Done]):
    """All that is compared has a time of these rounds, and the ratio is that of the times."""
    report = read_run_report(place[0] / "run")
    assert report.cost.n_rounds >= 3
    assert report.cost.time_ratio is not None
    (last,) = report.verdict.against
    ms = {str(item.blocks[0]): item.cost for item in report.baselines if len(item.blocks) == 1}
    against = ms[last]
    assert against is not None
    ratio = report.cost.pipeline.ms_per_text / against.ms_per_text
    assert report.cost.time_ratio.value == pytest.approx(ratio)
    assert report.cost.time_ratio.low <= ratio <= report.cost.time_ratio.high
    timed = {(e.name, layer) for e in report.encoders for layer in e.cost.ms_by_layer}
    for baseline in report.baselines:
        for encoder in {block.encoder for block in baseline.blocks}:
            own = [block.layer for block in baseline.blocks if block.encoder == encoder]
            assert (encoder, max(own)) in timed


def test_notes_of_the_run_are_kept(place: tuple[Path, Done]):
    root, done = place
    notes = read_run_report(root / "run").notes
    assert any("4 of 44 test texts are training texts too" in note for note in notes)
    assert all(f"· {note}" in done.err for note in notes)


def test_the_page_says_apart_what_is_simpler(tmp_path: Path):
    make_run(tmp_path, rows=200)
    succeed("report", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="advice">Simpler, and as good: one:24:mean alone.</p>' in page
    assert '<p class="verdict gained">It is better.</p>' in page
    assert '<p class="headline">Fusion of 5 blocks classifies 90.0%' in page


@pytest.mark.slow
def test_pages_made_by_several_threads_are_those_of_one(tmp_path: Path):
    report = make_run(tmp_path, rows=200)
    write_page(report, None, tmp_path / "alone.html")
    expected = (tmp_path / "alone.html").read_text(encoding="utf-8")

    def make(number: int) -> str:
        write_page(report, None, tmp_path / f"{number}.html")
        return (tmp_path / f"{number}.html").read_text(encoding="utf-8")

    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(make, range(16)))
    assert [number for number, page in enumerate(pages) if page != expected] == []


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("report.json", None, "no report.json"),
        ("report.json", "{", "Invalid JSON"),
        ("report.json", "[]", "RunReport"),
        ("report.json", '{"settings": {"data": "mine.csv"}}', "layerfuse_version"),
        ("curve.json", "no", "Invalid JSON"),
        ("curve.json", "{}", "data: Field required"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, damage: str | None, says: str):
    make_run(tmp_path, rows=200)
    (tmp_path / name).unlink(missing_ok=True)
    if damage is not None:
        (tmp_path / name).write_text(damage, encoding="utf-8")
    done = run("report", tmp_path)
    assert done.code == 2, done.err
    assert says in done.err
    assert str(tmp_path) in done.err
    assert len(done.err.splitlines()) <= 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("accuracy", "high"), ("n", None), ("accuracy", {"value": 2})],
)
def test_a_damaged_field_is_named(tmp_path: Path, field: str, value: object):
    make_run(tmp_path, rows=200)
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    saved["cv"][field] = value
    (tmp_path / "report.json").write_text(json.dumps(saved), encoding="utf-8")
    done = run("report", tmp_path)
    assert done.code == 2
    assert "report.json is not a RunReport" in done.err
    assert f"cv.Evaluation.{field}" in done.err


@pytest.mark.parametrize("path", ["gone", "file"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, path: str):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("report", tmp_path / path)
    assert done.code == 2
    assert "run folder" in done.err


@pytest.mark.slow
def test_the_page_of_many_classes_is_small(tmp_path: Path):
    make_run(tmp_path)
    made = succeed("report", tmp_path, "--json").json
    assert made["n_bytes"] < 6e6


def result_of(
    layers: Sequence[int], scorer: Literal["ridge", "logistic"] = "ridge"
) -> ProfileResult:
    """Scores of one encoder; the higher a layer, the better."""
    scores = tuple(
        BlockScore(BlockRef("e", layer, "mean"), layer / 100, 0.01, 0.5, 1 - layer / 100, 0.1, 1.0)
        for layer in layers
    )
    return ProfileResult(
        data=TrainingData(name="x", train_rows=9),
        profile=BlockScores(scores, scorer),
        truncated_share=0.0,
    )


def printed(layers: Sequence[int], scorer: Literal["ridge", "logistic"] = "ridge") -> list[str]:
    out = Console(file=io.StringIO(), width=80)
    render(result_of(layers, scorer), out)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("layers", "said"), [(range(4, 31), "4 to 30"), ((8, 16, 24, 30), "8, 16, 24, 30")]
)
def test_the_chart_names_the_layers_that_it_shows(layers: Sequence[int], said: str):
    assert any(f"layers {said}, " in line for line in printed(layers))


@pytest.mark.parametrize(("n_layers", "lowest"), [(3, "▅"), (5, "▁"), (31, "▁")])
def test_noise_does_not_look_like_a_cliff(n_layers: int, lowest: str):
    """A layer is a point of accuracy better than the one below, which is one standard error."""
    (bars,) = (line.strip() for line in printed(range(n_layers)) if "█" in line)
    assert (bars[0], bars[-1], len(bars)) == (lowest, "█", n_layers)


@pytest.mark.parametrize(("layers", "shown"), [(range(31), "12 of 31"), (range(12), "all")])
def test_the_table_says_how_it_is_sorted_and_what_it_leaves_out(layers: Sequence[int], shown: str):
    lines = printed(layers)
    title = f"Blocks by loss, leave-one-out on training rows ({shown})"
    assert title in " ".join(lines)  # it may be wrapped
    names = [line.split()[0] for line in lines if line.strip().startswith("e:")]
    assert names == [f"e:{layer}:mean" for layer in reversed(layers)][:12]


@pytest.mark.parametrize(("scorer", "left_out"), [("ridge", True), ("logistic", False)])
def test_only_a_ridge_probe_leaves_one_row_out(
    scorer: Literal["ridge", "logistic"], left_out: bool
):
    text = " ".join(printed(range(4), scorer))
    assert ("leave-one-out" in text, "cross-validated" in text) == (left_out, not left_out)


class TestFitInTheTerminal:
    def lines(self, report: RunReport) -> list[str]:
        out = Console(file=io.StringIO(), width=80, markup=False, emoji=False, highlight=False)
        render(report, out)
        assert isinstance(out.file, io.StringIO)
        return [line.rstrip() for line in out.file.getvalue().splitlines()]

    def test_one_screen_says_what_matters(self, tmp_path: Path):
        report = make_run(tmp_path, rows=200)
        lines = self.lines(report)
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 80
        text = "\n".join(lines)
        assert "Verdict: Fusion of 5 blocks classifies 90.0% of the texts correctly." in text
        for block in report.selection.blocks:
            assert str(block) in text
        for name in ("TF-IDF", "last layer (one)", "best block", "1.5x the last layer"):
            assert name in text
        assert "last matched" not in text
        assert lines[-1] == "Next: layerfuse predict runs/made-up FILE"


@pytest.mark.parametrize(
    ("name", "encoder", "shown"),
    [
        ("first_3", None, "first 3 selected"),
        ("last_layer", "my_model", "last layer (my_model)"),
        ("last_layer (my_model)", None, "last layer (my_model)"),
        ("best_block", "my_model", "best block"),
        ("tfidf", None, "TF-IDF + logistic"),
    ],
)
def test_names_that_people_read(name: str, encoder: str | None, shown: str):
    assert baseline_name(name, encoder) == shown


def test_numbers_are_written_one_way():
    assert percent(0.9449) == "94.5%"
    assert percent(None) == "–"
    assert points(-0.0123) == "−1.2"
    assert interval(0.9, 0.951) == "90.0 to 95.1"
