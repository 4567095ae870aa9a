"""What the commands print, where, and with which exit code: real runs on tiny models."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pandas
import pytest
import transformers as hf
from rich.console import Console
from safetensors import safe_open

import layerfuse
from commandline import LABELS, Done, rows, run, start, succeed, write_csv, write_jsonl, write_text
from families import N_LAYERS, save_model
from layerfuse import BlockRef, FrozenEncoder
from layerfuse.cli.commands import app
from layerfuse.cli.console import console
from layerfuse.cli_options import (
    FUSION_NAMES,
    HEAD_NAMES,
    POOLING_NAMES,
    WINDOW_POOLING_NAMES,
    FitConfig,
)
from layerfuse.commands.fit import run_folder
from layerfuse.data import DATASETS, ENCODERS, TABLE_SUFFIXES, load_dataset
from layerfuse.encoders import checks as checking
from layerfuse.files import cache_dir
from layerfuse.fusion import FUSIONS
from layerfuse.heads import HEADS
from layerfuse.pooling import POOLINGS, WINDOW_POOLINGS
from layerfuse.report.run_report import read_run_report
from layerfuse.report.tables import percent

pytestmark = pytest.mark.slow

N_TRAIN, N_TEST = 60, 30
CONTROL = ("\x1b", "\r", "\b")  # what progress bars and colours are made of
CHAT_TEMPLATE = "{% for m in messages %}the {{ m['content'] }} the{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model folders ``bert``, ``llama`` and ``chatty``, a llama that chats."""
    folder = tmp_path_factory.mktemp("models")
    save_model("bert", folder / "bert")
    save_model("llama", folder / "llama", seed=1)
    chatty = save_model("llama", folder / "chatty", seed=1)
    tokenizer = hf.AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(chatty)
    return folder


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One run of ``fit`` with two encoders and a test file: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    write_csv(folder / "train.csv", rows(N_TRAIN))
    write_csv(folder / "test.csv", rows(N_TEST, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFUSE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        done = run(
            *("fit", "train.csv", "--test", "test.csv", "--out", "run", "--json"),
            *("-e", f"tiny={models / 'bert'}", "-e", models / "llama"),
        )
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder and with a cache of its own."""
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def fit(models: Path, *args: object) -> dict[str, Any]:
    """The report of a quick fit with the tiny BERT."""
    quick = ("--head", "ridge", "--cv", 2, "--no-report", "--json")
    place = () if "--out" in args else ("--out", "run")
    return succeed("fit", *args, "-e", f"tiny={models / 'bert'}", *quick, *place).json


def blocks_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks that were scored."""
    return [score["block"] for score in report["profile"]["scores"]]


class TestFit:
    def test_json_is_the_one_thing_on_standard_output(self, trained: tuple[Path, Done]):
        _, done = trained
        assert done.out.count("\n") == 1
        assert done.json["run"] == "run"
        assert done.err.startswith("· train: 60 train rows, 30 test rows\n")

    def test_report_says_what_was_chosen_and_how_good_it_is(self, trained: tuple[Path, Done]):
        report = trained[1].json
        blocks, gains = report["selection"]["blocks"], report["selection"]["gains"]
        assert len(blocks) == len(gains) >= 1
        assert all(set(block) == {"encoder", "layer", "pooling"} for block in blocks)
        assert {block["encoder"] for block in blocks} <= {"tiny", "llama", "lexical"}
        assert len(report["profile"]["scores"]) == 2 * (N_LAYERS + 1)
        assert report["cv"]["n"] == N_TRAIN
        assert report["test"]["n"] == N_TEST
        for measured in (report["cv"], report["test"]):
            for name in ("accuracy", "macro_f1", "ece"):
                low, value, high = (measured[name][key] for key in ("low", "value", "high"))
                assert 0 <= low <= value <= high <= 1
            assert measured["log_loss"]["value"] > 0
        assert report["data"]["truncated_share"] == 0
        assert report["verdict"]["sentence"].endswith(".")
        assert report["settings"]["data"] == "train.csv"

    def test_report_has_every_baseline_on_the_same_rows(self, trained: tuple[Path, Done]):
        baselines = trained[1].json["baselines"]
        names = [(entry["name"], entry.get("encoder")) for entry in baselines]
        assert names[:2] == [("majority", None), ("tfidf", None)]
        assert {("last_layer", name) for name in ("tiny", "llama")} < set(names)
        assert {("last_four", name) for name in ("tiny", "llama")} < set(names)
        assert [name for name, _ in names].count("best_block") == 1
        for entry in baselines:
            for rows_of in ("cv", "test"):
                gain = entry[rows_of]["gain"]
                own = trained[1].json[rows_of]["accuracy"]["value"]
                accuracy = entry[rows_of]["accuracy"]["value"]
                assert 0 <= accuracy <= 1
                assert gain["difference"] == pytest.approx(own - accuracy)
                assert gain["low"] <= gain["difference"] <= gain["high"]
            assert (entry["cost"] is None) == (entry["name"] in ("majority", "tfidf"))

    def test_report_says_what_each_pipeline_costs(self, trained: tuple[Path, Done]):
        report = trained[1].json
        cost, chosen = report["cost"]["pipeline"], report["selection"]["blocks"]
        assert cost["blocks"] == len(chosen)
        assert cost["dims"] == sum(2 if b["encoder"] == "lexical" else 32 for b in chosen)
        assert min(cost["ms_per_text"], cost["memory_mb"], cost["parameters"]) > 0
        front = {entry["name"]: entry for entry in report["pareto"]}
        assert front["pipeline"]["accuracy"] == report["cv"]["accuracy"]
        assert front["pipeline"]["cost"] == cost
        assert any(entry["on_front"] for entry in front.values())
        accuracies = [entry["accuracy"]["value"] for entry in report["pareto"]]
        assert accuracies == sorted(accuracies, reverse=True)
        assert report["selection"]["trials"] == []  # too few rows to compare fusions
        few = ("upper", "concat", "logistic")
        assert tuple(report["selection"][part] for part in ("method", "fusion", "head")) == few

    @pytest.mark.parametrize(
        ("limit", "name", "most"),
        [("--max-dims", "dims", 40), ("--max-parameters", "parameters", 12_000)],
    )
    def test_limits_are_kept(self, models: Path, limit: str, name: str, most: int):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        upper = ("--layers", "1,2,3", "--selection", "top_k")
        limited = fit(models, "train.csv", limit, most, *upper)["cost"]["pipeline"]
        free = fit(models, "train.csv", *upper, "--out", "free")["cost"]["pipeline"]
        assert limited[name] <= most < free[name]

    def test_report_accounts_for_the_time(self, trained: tuple[Path, Done]):
        timings = trained[1].json["timings"]
        stages = (
            "extract_s",
            "score_s",
            "search_s",
            "head_s",
            "baselines_s",
            "latency_s",
            "seeds_s",
        )
        assert set(timings) == {*stages, "total_s"}
        assert min(timings.values()) >= 0
        assert sum(timings[stage] for stage in stages) <= timings["total_s"]

    def test_run_folder_holds_the_report_and_the_bundle(self, trained: tuple[Path, Done]):
        folder, done = trained
        saved = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
        assert saved == done.json
        assert (folder / "run" / "bundle" / "bundle.json").is_file()
        assert sorted(path.name for path in folder.iterdir()) == [
            *("cache", "run", "test.csv", "train.csv"),
        ]

    def test_people_get_a_report_on_standard_output_and_notes_on_standard_error(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        done = succeed("fit", "train.csv", "-e", models / "bert", "--out", "run", "--cv", 2)
        for part in (
            "bert:0:mean",
            "TF-IDF",
            "most frequent label",
            "last layer (bert)",
            "Next: layerfuse predict run FILE\n",
        ):
            assert part in done.out
        report = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
        _, sentence = report["verdict"]["sentence"].split(maxsplit=1)  # the first is capitalized
        assert sentence in " ".join(done.out.split())
        assert all(line.startswith("· ") for line in done.err.splitlines())
        assert not any(sign in done.out + done.err for sign in CONTROL)

    def test_a_run_that_was_stopped_before_its_page_gets_it_by_the_same_command(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        command = ("fit", "train.csv", "-e", models / "bert", "--out", "run", "--cv", 2)
        succeed(*command)
        page, saved = Path("run/report.html"), Path("run/report.json").read_bytes()
        expected = page.read_bytes()
        assert "run exists already" in run(*command).err
        page.unlink()
        assert "run exists already" in run(*command, "--seed", 1).err
        done = succeed(*command, "--json")
        assert done.json == json.loads(saved)
        assert "without its page" in done.err
        assert (page.read_bytes(), Path("run/report.json").read_bytes()) == (expected, saved)
        write_csv(Path("train.csv"), rows(N_TRAIN, seed=1))
        page.unlink()
        assert "run exists already" in run(*command).err  # it is of other rows

    def test_without_a_test_file_everything_is_measured_out_of_fold(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        report = fit(models, "train.csv")
        assert report["test"] is None
        assert all(entry["test"] is None for entry in report["baselines"])
        assert report["verdict"]["rows"] == "cv"

    def test_default_run_folder_has_the_name_of_the_data(self, models: Path):
        write_csv(Path("my.texts.csv"), rows(N_TRAIN))
        report = succeed(
            "fit", "my.texts.csv", "-e", models / "bert", "--cv", 2, "--head", "ridge", "--json"
        ).json
        (made,) = Path("runs").iterdir()
        assert Path(report["run"]) == made
        assert made.name.startswith("my-20")

    def test_fits_of_one_second_have_run_folders_of_their_own(self):
        config = FitConfig(data="my.texts.csv", encoders=("minilm",))
        assert len({run_folder(config) for _ in range(20)}) == 20

    def test_sample_takes_a_part_of_every_split(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        write_csv(Path("test.csv"), rows(N_TEST, seed=1))
        report = fit(models, "train.csv", "--test", "test.csv", "--sample", 24)
        assert report["data"]["train_rows"] == 24
        assert report["test"]["n"] == 24

    def test_texts_that_were_cut_are_counted(self, models: Path):
        data = rows(N_TRAIN)
        share = sum(len(text.split()) + 2 > 8 for text, _ in data) / len(data)  # <s> and </s>
        report = fit(models, write_csv(Path("train.csv"), data), "--max-length", 8)
        assert 0 < share < 1
        assert report["data"]["truncated_share"] == pytest.approx(share)
        lengths = [len(text.split()) + 2 for text, _ in data]
        read = sum(min(length, 8) for length in lengths) / sum(lengths)
        assert report["data"]["read_share"] == pytest.approx(read)
        assert any("--windows" in note and f"{read:.1%}" in note for note in report["notes"])

    def test_windows_read_all_and_are_candidates(self, models: Path):
        train = write_csv(Path("train.csv"), rows(N_TRAIN))
        limits = ("--max-length", 6, "--windows", "max,mean")
        report = fit(models, train, *limits, "--out", "windows")
        assert report["data"]["truncated_share"] == 0
        assert report["data"]["read_share"] == 1
        (encoder,) = report["encoders"]
        assert encoder["windows"] == ["max", "mean"]
        scores = report["profile"]["scores"]
        assert {score["block"]["pooling"] for score in scores} == {"mean/max", "mean/mean"}
        text = "a very good film and a great plot of the story"
        assert succeed("predict", "windows", "--text", text, "--json").json["rows"] == 1
        done = run("export", "windows", "--format", "onnx", "--out", "out")
        assert done.code == 2
        assert "--windows" in done.err
        cut = fit(models, train, *limits, "--max-windows", 1, "--out", "cut")
        assert cut["data"]["truncated_share"] > 0
        assert cut["data"]["read_share"] < 1
        assert any("--max-windows" in note for note in cut["notes"])

    @pytest.mark.parametrize(
        "data",
        [
            [("a film", "a"), ("a plot", "a"), ("good", "b"), ("great", "b")],
            [("a film", label) for _, label in rows(30)],
        ],
        ids=["two rows of a class", "one text for all"],
    )
    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    def test_the_least_that_can_be_trained_on(
        self, models: Path, data: list[tuple[str, str]], head: str
    ):
        write_csv(Path("x.csv"), data)
        done = run("fit", "x.csv", "-e", models / "bert", "--head", head, "--out", "run", "--json")
        assert done.code == 0
        assert done.json["cv"]["n"] == len(data)

    def test_layers_and_poolings_limit_the_blocks(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        report = fit(models, "train.csv", "--layers", "0,-1", "--pooling", "mean, max")
        read = {(block["layer"], block["pooling"]) for block in blocks_of(report)}
        assert read == {(layer, pooling) for layer in (0, N_LAYERS) for pooling in ("mean", "max")}

    def test_each_encoder_can_have_poolings_of_its_own(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        encoders = ("-e", models / "bert", "-e", models / "llama", "--layers", 3)
        poolings = ("--pooling", "llama=last,max", "--pooling", "llama=mean")
        report = succeed("profile", "train.csv", *encoders, *poolings, "--json").json
        assert [(block["encoder"], block["pooling"]) for block in blocks_of(report)] == [
            *(("bert", "mean"), ("llama", "last"), ("llama", "max"), ("llama", "mean")),
        ]

    def test_a_block_that_is_the_same_for_all_texts_is_only_a_bad_block(self, models: Path):
        """Layer 0 of a BERT at the first token, which is always the same token."""
        write_csv(Path("train.csv"), rows(N_TRAIN))
        report = fit(models, "train.csv", "--pooling", "cls")
        assert report["selection"]["blocks"][0]["layer"] > 0


class TestSettingsFile:
    def test_options_go_over_the_file_and_the_file_over_the_defaults(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        write_text(
            Path("fit.toml"),
            f"""
            data = "train.csv"
            encoders = ["tiny={models / "bert"}"]
            head = "ridge"
            cv = 3
            layers = [0, 1]
            max_blocks = 2
            prompts = {{ tiny = "a film: {{text}}" }}
            """,
        )
        options = ("--max-blocks", 1, "--pooling", "max", "--out", "run", "--json")
        report = succeed("fit", "--config", "fit.toml", *options).json
        used = report["settings"]
        assert (used["head"], used["cv"], used["layers"]) == ("ridge", 3, [0, 1])
        assert used["prompts"] == {"tiny": "a film: {text}"}
        assert (used["max_blocks"], used["pooling"]) == (1, ["max"])
        assert (used["selection"], used["seed"]) == ("auto", 0)
        assert [block["pooling"] for block in report["selection"]["blocks"]] == ["max"]

    @pytest.mark.parametrize("line", ["head = " + "[" * 2_000, "head" + ".a" * 2_000 + " = 1"])
    def test_values_without_an_end_are_refused(self, models: Path, line: str):
        write_csv(Path("train.csv"), rows(6))
        write_text(Path("deep.toml"), line)
        done = run("fit", "train.csv", "--config", "deep.toml", "-e", models / "bert")
        assert done.code == 2
        assert "deep.toml" in done.err


class TestOptions:
    def test_help_and_completion_name_what_the_registries_hold(self):
        assert tuple(HEADS) == HEAD_NAMES
        plain = dict.fromkeys(name.removesuffix("+residual") for name in FUSIONS)
        assert tuple(plain) == FUSION_NAMES
        assert tuple(POOLINGS) == POOLING_NAMES
        assert tuple(WINDOW_POOLINGS) == WINDOW_POOLING_NAMES
        shown = succeed("fit", "--help").out
        assert all(name in shown for name in (*HEAD_NAMES, *FUSION_NAMES, *POOLING_NAMES))
        script = app.generate_completion(shell="bash")  # noqa: S604  # bash is a name here
        assert all(name in script for name in (*HEAD_NAMES, "--max-blocks", "top_k"))

    def test_defaults_are_those_of_the_classifier(self):
        ours = {field.name: field.default for field in fields(FitConfig)}
        theirs = signature(layerfuse.LayerFusionClassifier).parameters
        shared = ours.keys() & theirs.keys()
        assert {"encoders", "selection", "max_blocks", "fusion", "head", "cv"} <= shared
        for name in shared - {"store"}:  # None is the user's cache here, and no cache there
            assert ours[name] == theirs[name].default, name

    @pytest.mark.parametrize(
        ("command", "default"),
        [("fit", "auto"), ("curve", "concat")],
    )
    def test_help_shows_the_default_of_the_command(self, command: str, default: str):
        shown = " ".join(succeed(command, "--help").out.replace("│", " ").split())
        assert f"NAME+residual. [default: {default}]" in shown
        assert "Maximum tokens per text or window. [default: 512]" in shown

    def test_every_option_has_a_help_text(self):
        for command in (app[name] for name in app if not name.startswith("-")):
            for own in [command, *(command[n] for n in command if not n.startswith("-"))]:
                if own.default_command is not None:
                    arguments = own.assemble_argument_collection()
                    lacking = [a.name for a in arguments if a.show and not a.parameter.help]
                    assert lacking == []


class TestPrompts:
    def test_prompt_and_chat_prompt_change_what_is_read(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        scores = {}
        for name, option in {
            "plain": (),
            "prompt": ("--prompt", "it=the plot of the film = {text} is"),
            "chat": ("--chat-prompt", "it=is the film good"),
        }.items():
            arguments = ("-e", f"it={models / 'chatty'}", "--pooling", "last", *option, "--json")
            report = succeed("profile", "train.csv", *arguments).json
            scores[name] = [row["loss"] for row in report["profile"]["scores"]]
        assert len(set(map(tuple, scores.values()))) == 3
        sections = succeed("store", "ls", "--json").json["sections"]
        assert {section["identity"]["template"] for section in sections} == {
            None,
            "the plot of the film = {text} is",  # an equals sign is part of the template
        }
        assert {section["identity"]["chat_question"] for section in sections} == {
            None,
            "is the film good",
        }

    def test_a_classifier_keeps_its_prompt(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        report = fit(models, "train.csv", "--prompt", "tiny=a film: {text}")
        bundle = json.loads(Path("run/bundle/bundle.json").read_text(encoding="utf-8"))
        assert bundle["encoders"][0]["prompt"] == "a film: {text}"
        measured = succeed("evaluate", "run", "train.csv", "--json").json["metrics"]
        assert measured["accuracy"]["value"] >= report["cv"]["accuracy"]["value"]


class TestFiles:
    @pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.jsonl.gz", "x.parquet", "x"])
    def test_every_kind_of_file_gives_the_same_numbers(self, models: Path, name: str):
        data, path = rows(N_TRAIN), Path(name)
        if name == "x":
            write_jsonl(path / "train.jsonl.gz", data)
        elif "jsonl" in name:
            write_jsonl(path, data)
        elif name == "x.parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            columns = dict(zip(("text", "label"), map(list, zip(*data, strict=True)), strict=True))
            parquet.write_table(pyarrow.table(columns), path)
        elif name == "x.tsv":
            write_text(path, "\n".join("\t".join(row) for row in [("text", "label"), *data]))
        else:
            write_csv(path, data)
        arguments = ("-e", f"tiny={models / 'bert'}", "--dtype", "float32", "--json", "--quiet")
        report = succeed("profile", path, *arguments).json
        write_csv(Path("plain.csv"), data)
        plain = succeed("profile", "plain.csv", *arguments).json
        assert report["profile"] == plain["profile"]
        assert report["data"] == {"name": "x", "train_rows": N_TRAIN, "test_split": None}

    def test_a_folder_of_splits_is_trained_and_tested(self, models: Path):
        write_jsonl(Path("data/train.jsonl.gz"), rows(N_TRAIN))
        write_jsonl(Path("data/test.jsonl.gz"), rows(N_TEST, seed=1))
        report = fit(models, "data")
        data = report["data"]
        assert (data["name"], data["test_split"]) == ("data", "test")
        assert data["train_rows"] == data["learned_rows"] == N_TRAIN
        evaluated = succeed("evaluate", "run", "data", "--json").json
        assert evaluated["split"] == "test"
        assert evaluated["metrics"]["accuracy"] == report["test"]["accuracy"]

    def test_columns_of_other_names_are_named(self, models: Path):
        write_csv(Path("x.csv"), rows(N_TRAIN), header=("what was said", "who, then"))
        columns = ("--text-column", "what was said", "--label-column", "who, then")
        assert fit(models, "x.csv", *columns)["data"]["train_rows"] == N_TRAIN

    def test_numbers_stay_numbers(self, models: Path):
        numbers = {label: number for number, label in enumerate(LABELS)}
        lines = [json.dumps({"text": text, "label": numbers[label]}) for text, label in rows(60)]
        write_text(Path("x.jsonl"), "\n".join(lines))
        fit(models, "x.jsonl")
        predicted = succeed("predict", "run", "x.jsonl", "--json").json
        assert predicted["classes"] == [0, 1, 2]


class TestUse:
    TEXTS = ("the film was great", "awful, the plot", "oil and the market")

    def texts(self) -> Path:
        lines = ["text", *(f'"{text}"' for text in self.TEXTS)]
        return write_text(Path("new.csv"), "\n".join(lines) + "\n")

    @pytest.mark.parametrize("part", ["run", "run/bundle"])
    def test_predict_prints_what_the_library_predicts(self, trained: tuple[Path, Done], part: str):
        done = succeed("predict", trained[0] / part, self.texts())
        printed = list(csv.DictReader(io.StringIO(done.out)))
        classifier = layerfuse.load(trained[0] / part)
        assert [row["text"] for row in printed] == list(self.TEXTS)
        assert [row["label"] for row in printed] == classifier.predict(self.TEXTS).tolist()
        assert {row["label"] for row in printed} <= set(LABELS)
        proba = classifier.predict_proba(self.TEXTS).max(axis=1)
        assert [float(row["probability"]) for row in printed] == pytest.approx(proba, abs=1e-4)

    def test_predict_writes_a_file_instead(self, trained: tuple[Path, Done]):
        printed = succeed("predict", trained[0] / "run", self.texts()).out
        done = succeed("predict", trained[0] / "run", "new.csv", "--out", "folder/out.csv")
        assert done.out == ""
        assert done.err.endswith("wrote 3 rows to folder/out.csv\n")
        assert Path("folder/out.csv").read_text(encoding="utf-8") == printed
        assert [path.name for path in Path("folder").iterdir()] == ["out.csv"]

    @pytest.mark.parametrize("name", [*(f"p{suffix}" for suffix in TABLE_SUFFIXES), "P.CSV.GZ"])
    def test_predictions_are_in_the_format_that_the_name_says(
        self, trained: tuple[Path, Done], name: str
    ):
        texts = ["line one\rline two", "plain", "\r", 'end "quoted", \r\n', "a\u2028b\x85", ""]
        write_jsonl(Path("odd.jsonl"), [(text, "") for text in texts])
        succeed("predict", trained[0] / "run", "odd.jsonl", "--out", name)
        written = load_dataset(name, label_column="label")
        assert list(written.train.texts) == texts
        expected = layerfuse.load(trained[0] / "run").predict(texts)
        assert list(written.train.labels) == list(expected)
        if "csv" in name.lower():
            assert pandas.read_csv(name, keep_default_na=False)["text"].tolist() == texts

    @pytest.mark.parametrize("name", ["p.xlsx", "p.csv.zip", "p.txt", "p", "p.json"])
    def test_a_format_that_is_not_written_is_refused_before_the_work(self, name: str):
        done = run("predict", "nowhere", "nothing.csv", "--out", name)
        assert done.code == 2
        assert ".jsonl" in done.err
        assert ".parquet" in done.err
        assert not Path(name).exists()

    def test_an_encoder_that_was_moved_is_found_where_it_is_said_to_be(self, models: Path):
        shutil.copytree(models / "bert", "here")
        write_csv(Path("train.csv"), rows(60))
        succeed(
            "fit", "train.csv", "-e", "bert=here", "--out", "run", "--cv", 2, "--fusion", "concat"
        )
        before = succeed("predict", "run", self.texts()).out
        Path("here").rename("there")
        for place in ("berd=there", "there"):
            assert run("predict", "run", "new.csv", "-e", place).code == 2
        assert run("predict", "run", "new.csv").code == 2
        assert succeed("predict", "run", "new.csv", "-e", "bert=there").out == before
        measured = succeed("evaluate", "run", "train.csv", "-e", "bert=there", "--json").json
        assert measured["metrics"]["n"] == 60

    @pytest.mark.parametrize(
        ("text", "label", "told"),
        [("opinion", "grade", True), ("Review", "label", False)],
        ids=["told", "guessed"],
    )
    def test_columns_are_those_that_fit_read(self, models: Path, text: str, label: str, told: bool):
        data = [(str(place), *row) for place, row in enumerate(rows(60))]

        def write(name: str, *header: str) -> None:
            with Path(name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *data])

        write("train.csv", "number", text, label)
        columns = ("--text-column", text, "--label-column", label) if told else ()
        options = ("--out", "run", "--cv", 2, "--fusion", "concat", "--no-report")
        succeed("fit", "train.csv", "-e", models / "bert", *columns, *options)
        Path("run/report.json").unlink()  # the bundle knows them
        measured = succeed("evaluate", "run", "train.csv", "--json").json
        assert measured["metrics"]["n"] == 60
        printed = succeed("predict", "run", "train.csv")
        assert printed.out == succeed("predict", "run/bundle", "train.csv").out
        texts = [row[text] for row in csv.DictReader(io.StringIO(printed.out))]
        assert texts == [text for _, text, _ in data]
        assert "read from column" not in printed.err
        # A file without such a column is refused, even where another column is plainly the text.
        write("other.csv", "number", "text", "class")
        done = run("predict", "run", "other.csv")
        assert done.code == 2
        for part in (f"no column '{text}'", "--text-column", "was trained on column"):
            assert part in done.err
        done = run("evaluate", "run", "other.csv", "--text-column", "text")
        assert done.code == 2
        assert f"no column '{label}'" in done.err
        assert "--label-column" in done.err
        given = ("--text-column", "text", "--label-column", "class")
        assert succeed("evaluate", "run", "other.csv", *given, "--json").json == {
            **measured,
            "data": "other.csv",
        }
        other = succeed("predict", "run", "other.csv", *given[:2]).out
        shares = [
            [row["probability"] for row in csv.DictReader(io.StringIO(out))]
            for out in (other, printed.out)
        ]
        assert shares[0] == shares[1]
        # What was given is not told apart from what was trained on.
        done = run("predict", "run", "train.csv", "--text-column", "remark")
        assert done.code == 2
        assert "has no column 'remark'" in done.err
        assert "was trained on column" not in done.err

    def test_a_bundle_from_python_names_the_column_that_is_read(
        self, trained: tuple[Path, Done], tmp_path: Path
    ):
        classifier = layerfuse.load(trained[0] / "run")
        classifier.save(tmp_path / "bundle")
        write_text(Path("tweets.csv"), "tweet\na great film\n")
        said = "texts are read from column 'tweet' (--text-column)"
        assert said in succeed("predict", tmp_path / "bundle", "tweets.csv").err
        chosen = succeed("predict", tmp_path / "bundle", "tweets.csv", "--text-column", "tweet")
        assert said not in chosen.err
        assert "read from" not in succeed("predict", tmp_path / "bundle", self.texts()).err
        write_csv(Path("headless.csv"), rows(5)[1:], header=rows(5)[0])
        done = run("predict", tmp_path / "bundle", "headless.csv")
        assert done.code == 2
        assert "seems to have no header" in done.err

    def test_predict_does_not_write_over_the_texts(self, trained: tuple[Path, Done]):
        before = self.texts().read_bytes()
        there = Path("..", Path.cwd().name, "new.csv")
        done = run("predict", trained[0] / "run", "new.csv", "--out", there)
        assert done.code == 2
        assert done.err.endswith("new.csv holds the texts. Choose another file with --out.\n")
        assert Path("new.csv").read_bytes() == before

    def test_predict_as_json(self, trained: tuple[Path, Done]):
        done = succeed("predict", trained[0] / "run", self.texts(), "--json", "--out", "out.csv")
        assert done.json["classes"] == sorted(LABELS)
        assert (done.json["rows"], done.json["out"]) == (3, "out.csv")
        assert Path("out.csv").is_file()
        done = succeed("predict", trained[0] / "run", self.texts(), "--json")
        assert [row["text"] for row in done.json["predictions"]] == list(self.TEXTS)

    def test_evaluate_measures_what_fit_measured(self, trained: tuple[Path, Done]):
        folder, fitted = trained
        report = succeed("evaluate", folder / "run", folder / "test.csv", "--json").json
        found, expected = report["metrics"], fitted.json["test"]
        for name in ("n", "accuracy", "macro_f1"):
            assert found[name] == expected[name]
        for name in ("log_loss", "ece"):  # fit read float16 from the store
            assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=0.02)

    def test_evaluate_for_people(self, trained: tuple[Path, Done]):
        folder, _ = trained
        done = succeed("evaluate", folder / "run", folder / "test.csv")
        first, head, accuracy, *_ = done.out.splitlines()
        assert first == f"{N_TEST} rows of {folder / 'test.csv'}"
        assert head.split() == ["metric", "value", "95%", "interval"]
        found = read_run_report(folder / "run").test
        assert found is not None
        assert accuracy.split()[:2] == ["accuracy", percent(found.accuracy.value)]


class TestProfile:
    @pytest.mark.parametrize("scorer", ["ridge", "logistic"])
    def test_every_block_is_scored_and_nothing_saved(self, models: Path, scorer: str):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        arguments = ("-e", models / "bert", "--pooling", "mean,max", "--scorer", scorer)
        report = succeed("profile", "train.csv", *arguments, "--json").json
        assert report["profile"]["scorer"] == scorer
        assert [(block["layer"], block["pooling"]) for block in blocks_of(report)] == [
            (layer, pooling) for pooling in ("mean", "max") for layer in range(N_LAYERS + 1)
        ]
        scores = report["profile"]["scores"]
        assert all(0 <= score["accuracy"] <= 1 and score["loss"] > 0 for score in scores)
        assert [path.name for path in Path.cwd().iterdir()] == ["train.csv"]

    def test_people_get_a_chart_and_a_table(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        # a name that looks like markup, and layers that begin above 0
        arguments = ("-e", f"[b]tiny={models / 'bert'}", "--layers", "1,2,3")
        done = succeed("profile", "train.csv", *arguments)
        assert "[b]tiny, mean pooling: layers 1 to 3, " in done.out
        assert "[b]tiny:3:mean" in done.out


def split_names(joined: str) -> list[str]:
    """Names of blocks that were written one after the other."""
    return re.findall(r".+?:\d:(?:mean_no_sink|weighted_mean)", joined)


class TestCompare:
    """Layers 1 to 3, because layer 0 of the tiny models sees every word that tells the label."""

    def encoders(self, models: Path) -> tuple[object, ...]:
        return ("-e", f"tiny={models / 'bert'}", "-e", models / "llama", "--layers", "1,2,3")

    def test_json_has_pairs_and_additions(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        report = succeed("compare", "train.csv", *self.encoders(models), "--json", "-q").json
        assert (report["data"]["name"], report["data"]["train_rows"]) == ("train", N_TRAIN)
        assert (report["n"], report["pairing"]) == (N_TRAIN, "encoders")
        (pair,) = report["pairs"]
        assert {pair["a"]["encoder"], pair["b"]["encoder"]} == {"tiny", "llama"}
        assert 0 <= pair["cka"] <= 1
        assert -1 <= pair["yules_q"] <= 1
        both = pair["accuracy_a"] + pair["accuracy_b"] - pair["oracle_accuracy"]
        assert both + pair["disagreement"] == pytest.approx(pair["oracle_accuracy"])
        assert pair["double_fault"] == pytest.approx(1 - pair["oracle_accuracy"])
        assert pair["gain"]["low"] <= pair["gain"]["difference"] <= pair["gain"]["high"]
        (used,) = report["pipeline"]
        assert used in (pair["a"], pair["b"])
        assert len(report["additions"]) == 5
        assert report["verdict"].endswith(".")

    def test_blocks_are_added_to_those_in_use(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        used = ("--to", "tiny:1:mean, llama:3:mean", "--pairs", "blocks")
        report = succeed("compare", "train.csv", *self.encoders(models), *used, "--json").json
        blocks = [layerfuse.BlockRef(**block) for block in report["pipeline"]]
        assert list(map(str, blocks)) == ["tiny:1:mean", "llama:3:mean"]
        added = {str(layerfuse.BlockRef(**one["block"])) for one in report["additions"]}
        assert added == {"tiny:2:mean", "tiny:3:mean", "llama:1:mean", "llama:2:mean"}
        assert len(report["pairs"]) == 15

    def test_the_layers_of_one_encoder_can_be_compared(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        one = ("-e", models / "bert", "--pairs", "blocks")
        assert len(succeed("compare", "train.csv", *one, "--json").json["pairs"]) == 6

    def test_people_get_tables_of_80_columns_at_most(self, models: Path):
        data = [(f"{text} \x1b[31m{'and so on ' * 20}", label) for text, label in rows(N_TRAIN)]
        write_csv(Path("train.csv"), data)
        done = succeed("compare", "train.csv", *self.encoders(models), "--pairs", "blocks")
        verdict, *tables = done.out.splitlines()
        assert verdict.startswith("Verdict: ")
        assert max(len(line) for line in tables) <= 80, [line for line in tables if len(line) > 80]
        for part in ("Pairs (leave-one-out on 60 training rows)", "and 5 more", "What to add next"):
            assert part in done.out
        assert not any(sign in done.out + done.err for sign in CONTROL)

    @pytest.mark.parametrize("width", [80, 100, 140])
    def test_names_of_blocks_break_between_words(
        self, models: Path, width: int, monkeypatch: pytest.MonkeyPatch
    ):
        def narrow() -> Console:
            own = console()
            own.width = width
            return own

        monkeypatch.setattr("layerfuse.cli.console.console", narrow)
        write_csv(Path("train.csv"), rows(N_TRAIN))
        names = ("nomic-embed-text-v1.5", "bge-small-en-v1.5")
        given = [f"{name}={models / 'bert'}" for name in names]
        poolings = ("--pooling", "mean_no_sink,weighted_mean")
        done = succeed("compare", "train.csv", "-e", given[0], "-e", given[1], *poolings)
        _, table = done.out.split("What to add next")
        pieces = [line.split()[0] for line in table.splitlines()[4:] if line.strip()]
        words = ("-", ":", "_", ":mean_no_sink", ":weighted_mean", "sink", "mean")
        assert all(piece.endswith(words) for piece in pieces)
        blocks = [str(BlockRef.parse(name)) for name in split_names("".join(pieces))]
        assert len(blocks) == 5
        assert all(block.startswith(names) for block in blocks)
        assert all(len(line) <= width for line in table.splitlines())

    def test_many_rows_are_compared_on_a_part_of_them(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("layerfuse.commands.analyze._MOST_ROWS", 45)
        write_csv(Path("train.csv"), rows(N_TRAIN))
        done = succeed("compare", "train.csv", *self.encoders(models), "--json")
        assert "· blocks are compared on 45 of 60 rows\n" in done.err
        assert done.json["n"] == 45
        assert done.json["data"]["train_rows"] == N_TRAIN


class TestModels:
    def test_list_names_the_catalog(self):
        listed = succeed("models", "list", "--json").json["models"]
        assert [entry["name"] for entry in listed] == list(ENCODERS)
        assert not any(entry["pulled"] for entry in listed)
        shown = succeed("models", "list").out
        assert all(name in shown for name in ENCODERS)

    def test_an_encoder_of_the_catalog_brings_its_prompt(self, models: Path):
        place = cache_dir() / "models"
        place.mkdir(parents=True)
        (place / "nomic").symlink_to(models / "bert")
        (entry,) = (e for e in succeed("models", "list", "--json").json["models"] if e["pulled"])
        assert (entry["name"], entry["prompt"]) == ("nomic", "classification: {text}")
        write_csv(Path("train.csv"), rows(N_TRAIN))
        command = ("profile", "train.csv", "-e", "nomic", "--json")
        default, none = succeed(*command), succeed(*command, "--prompt", "nomic={text}")
        assert "nomic: its own prompt, 'classification: {text}'" in default.err
        assert "its own prompt" not in none.err
        assert default.json["profile"] != none.json["profile"]
        encoder = FrozenEncoder.from_pretrained("nomic")
        assert encoder.prompt == "classification: {text}"
        assert FrozenEncoder.from_pretrained(models / "bert").prompt is None

    @pytest.mark.parametrize("family", ["bert", "llama"])
    def test_check_passes_a_sound_model(self, models: Path, family: str):
        done = succeed("models", "check", models / family, "--dtype", "float32")
        assert f"name: {family}\ndtype: float32\n" in done.out
        assert f"layers: {N_LAYERS}\ndim: 32\n" in done.out
        assert "ok: yes" in done.out
        report = succeed("models", "check", models / family, "--dtype", "float32", "--json").json
        assert report["ok"]
        assert len(report["checks"]) == 4

    def test_check_of_a_model_that_fails_ends_with_2(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setitem(checking._TOLERANCE, "float32", -1.0)  # nothing can pass
        done = run("models", "check", models / "bert", "--dtype", "float32")
        assert done.code == 2
        assert "ok: no" in done.out
        assert re.search(r"alone or in a batch .* no ", done.out)


class TestDatasets:
    def test_list_names_the_catalog(self):
        listed = succeed("datasets", "list", "--json").json["datasets"]
        assert [entry["name"] for entry in listed] == list(DATASETS)
        assert all(name in succeed("datasets", "list").out for name in DATASETS)

    def test_audit_of_clean_rows_says_so(self):
        write_csv(Path("clean.csv"), rows(20))
        write_csv(Path("repeated.csv"), [*rows(20), *rows(1)])
        line = "  no empty, repeated or conflicting texts"
        assert line in succeed("audit", "clean.csv").out.splitlines()
        assert line not in succeed("audit", "repeated.csv").out.splitlines()

    def test_audit_says_that_one_class_is_too_few(self):
        write_csv(Path("one.csv"), [(text, "same") for text, _ in rows(20)])
        out = succeed("audit", "one.csv").out.splitlines()
        assert "  rows by class: same: 20" in out
        assert "  only one class: a classifier needs two" in out

    def test_audit_finds_what_is_wrong(self):
        train = [*rows(20), ("the same", "news"), ("the same", "[/b]"), ("", "news")]
        write_csv(Path("train.csv"), train)
        write_csv(Path("test.csv"), [("The  same", "news"), ("new", "other")])
        done = succeed("audit", "train.csv", "--test", "test.csv")
        for line in (
            "train: 23 rows",
            "  empty texts: 1 (row 22, counted from 0)",
            "  repeated texts: 1 (row 21, counted from 0)",
            "  texts with conflicting labels: 1 (rows 20, 21)",
            "  rows of test that are in train: 1 (row 0, counted from 0)",
            "  classes without a training row: other",
        ):
            assert line in done.out.splitlines()
        assert "[/b]: 1" in done.out
        report = succeed("audit", "train.csv", "--test", "test.csv", "--json").json
        assert report["leaks"]["count"] == 1


class TestStore:
    @pytest.fixture
    def filled(self, models: Path) -> Path:
        """A store with the embeddings of two encoders."""
        write_csv(Path("train.csv"), rows(N_TRAIN))
        encoders = ("-e", models / "bert", "-e", models / "llama")
        succeed("profile", "train.csv", *encoders, "--store", "kept")
        return Path("kept")

    def test_ls_shows_what_is_there(self, filled: Path):
        sections = succeed("store", "ls", "--store", filled, "--json").json["sections"]
        assert {section["encoder"] for section in sections} == {"bert", "llama"}
        assert all(section["shards"] == 1 for section in sections)
        assert "kB" in succeed("store", "ls", "--store", filled).out

    def test_ls_of_an_empty_store(self):
        assert succeed("store", "ls").out == "sections: none\n"

    def test_what_is_there_is_not_read_again(self, filled: Path, models: Path):
        done = succeed("profile", "train.csv", "-e", models / "bert", "--store", filled)
        assert f"bert: {N_TRAIN} of {N_TRAIN} distinct texts are in the store\n" in done.err

    def test_verify_finds_a_damaged_shard_which_is_then_computed_again(
        self, filled: Path, models: Path
    ):
        assert "shards: 2\n" in succeed("store", "verify", "--store", filled).out
        before = succeed("profile", "train.csv", "-e", models / "bert", "--store", filled).out
        (shard,) = filled.glob("bert-*/*.safetensors")
        with safe_open(shard, framework="numpy") as file:
            assert len(list(file.keys())) == N_LAYERS + 3  # blocks, hashes, flags
        data = bytearray(shard.read_bytes())
        data[-200] ^= 1  # one bit of some block
        shard.write_bytes(data)

        done = run("store", "verify", "--store", filled)
        assert done.code == 2
        assert f"damaged: {shard.name}" in done.out.replace(f"{shard.parent}/", "")
        assert "a damaged shard was set aside and will be computed again" in done.err
        assert succeed("store", "verify", "--store", filled, "--json").json["damaged"] == []

        again = succeed("profile", "train.csv", "-e", models / "bert", "--store", filled)
        assert f"{N_TRAIN} to compute" in again.err
        assert again.out == before

    def test_prune_deletes_what_was_said(self, filled: Path):
        none = succeed("store", "prune", "--store", filled, "--older-than", 1, "--json").json
        assert none == {"removed": []}
        removed = succeed("store", "prune", "--store", filled, "--encoder", "bert", "--json").json
        assert [section["encoder"] for section in removed["removed"]] == ["bert"]
        assert [folder.name.partition("-")[0] for folder in filled.iterdir()] == ["llama"]
        succeed("store", "prune", "--store", filled, "--all")
        assert list(filled.iterdir()) == []


class TestTheShell:
    def test_version(self):
        assert succeed("--version").out == f"layerfuse {layerfuse.__version__}\n"

    @pytest.mark.parametrize("command", [(), ("fit",), ("models",), ("store", "prune")])
    def test_help_is_on_standard_output(self, command: tuple[str, ...]):
        done = succeed(*command, "--help")
        assert done.out.startswith("Usage: layerfuse ")
        assert done.err == ""

    def test_a_terminal_gets_a_progress_bar(self, models: Path, monkeypatch: pytest.MonkeyPatch):
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        from layerfuse.cli.console import TerminalReporter

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with TerminalReporter().task("reading [b]tiny", 10, "texts") as advance:
            for _ in range(10):
                advance(1)
        assert "reading [b]tiny" in terminal.getvalue()
        assert "10/10" in terminal.getvalue()
        assert "texts, " in terminal.getvalue()

    def test_a_pipe_gets_none_even_when_colours_are_forced(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """A process of its own: what libraries write to its real outputs is seen, too."""
        write_csv(Path("train.csv"), rows(N_TRAIN))
        arguments = ("train.csv", "-e", models / "bert", "--cv", 2, "--out", "run")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as some continuous integration has it
        process = start("fit", *arguments, "--quiet", cwd=Path.cwd())
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0
        assert err == ""
        assert out.endswith("Next: layerfuse predict run FILE\n")
        assert not any(sign in out for sign in ("\r", "\b", "\x1b[2K", "\x1b[?25l"))

    @pytest.mark.parametrize("option", [(), ("--json",)])
    def test_a_reader_that_goes_away_is_no_fault(self, option: tuple[str, ...]):
        process = start("datasets", "list", *option, cwd=Path.cwd())
        assert process.stdout is not None
        process.stdout.close()  # what `| head -1` does, before anything is written
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0
        process.stderr.close()

    def test_notes_that_nobody_reads_do_not_stop_the_work(self, models: Path):
        write_csv(Path("train.csv"), rows(N_TRAIN))
        process = start("profile", "train.csv", "-e", models / "bert", "--json", cwd=Path.cwd())
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert len(json.load(process.stdout)["profile"]["scores"]) == N_LAYERS + 1
        assert process.wait(timeout=60) == 0
        process.stdout.close()

    def test_ctrl_c_while_reading_keeps_what_is_done(self, models: Path):
        write_csv(Path("many.csv"), rows(20_000))
        arguments = ("-e", models / "bert", "--store", "kept")
        process = start("fit", "many.csv", *arguments, cwd=Path.cwd())
        until = time.monotonic() + 120
        while not list(Path("kept").glob("*/*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        again = shlex.join(["layerfuse", "fit", "many.csv", *map(str, arguments)])
        assert err.splitlines()[-2:] == [
            "layerfuse: interrupted. Finished embeddings are kept. To resume:",
            f"  {again}",
        ]
        assert re.search(r"bert: stopped with [1-9][\d,]* of 10,0\d\d distinct texts stored;", err)
        assert "Traceback" not in err
        assert out == ""
        assert sorted(path.name for path in Path.cwd().iterdir()) == ["kept", "many.csv"]
        assert not list(Path("kept").rglob("*.tmp"))
        succeed("store", "verify", "--store", "kept")

    def test_ctrl_c_in_a_finalizer_is_not_lost(self, monkeypatch: pytest.MonkeyPatch):
        class Late:
            def __del__(self) -> None:
                raise KeyboardInterrupt

        def work() -> None:
            Late()
            time.sleep(20)

        monkeypatch.setattr("layerfuse.commands.assets.list_models", work)
        started = time.monotonic()
        # What a shell starts in the background ignores Ctrl-C, and so would these tests.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            done = run("models", "list")
        finally:
            signal.signal(signal.SIGINT, before)
        assert (done.code, "interrupted" in done.err) == (130, True)
        assert time.monotonic() - started < 15

    def test_an_internal_error_ends_with_1_and_says_how_to_see_it(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        def broken() -> None:
            raise RuntimeError("the moon is full")

        monkeypatch.setattr("layerfuse.commands.assets.list_models", broken)
        done = run("models", "list")
        assert (done.code, done.out) == (1, "")
        assert "internal error, RuntimeError: the moon is full" in done.err
        assert "LAYERFUSE_TRACEBACK=1" in done.err
        monkeypatch.setenv("LAYERFUSE_TRACEBACK", "1")
        with pytest.raises(RuntimeError):
            run("models", "list")
        monkeypatch.delenv("LAYERFUSE_TRACEBACK")
        with pytest.raises(RuntimeError):
            run("models", "list", "--verbose")
