"""``python -m benchmarks.tables``: write the READMEs' tables and the study from the results.

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; ``docs/study.md`` is written
as a whole, from the study's own results. With ``--check`` nothing is written, and the exit status
says whether something would change.
"""

from __future__ import annotations

import io
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.accuracy import AccuracyRun
from benchmarks.markdown import SETS, markdown_table, percent, set_name
from benchmarks.study.page import page_of
from layerfuse.report.run_report import RunReport
from layerfuse.report.terminal import render

_HERE = Path(__file__).parent
_PAGES = (
    _HERE.parent / "README.md",
    _HERE / "README.md",
    _HERE.parent / "docs" / "long_texts.md",
    _HERE.parent / "docs" / "languages.md",
)
_STUDY = Path("results", "packaged")
_STUDY_PAGE = Path("docs", "study.md")
_MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = ("linear layers", "attention", "activations", "norms", "copies", "the rest")

_COLUMNS = 88  # of the demo's output

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    stale = []
    for page, after in _pages():
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        if before != after:
            stale.append(str(page.relative_to(_HERE.parent)))
            if "--check" not in arguments:
                page.parent.mkdir(parents=True, exist_ok=True)
                page.write_text(after, encoding="utf-8")
    print("\n".join(stale) or "the tables are those of the results")
    if stale and "--check" in arguments:
        print("differ from the results; run: python -m benchmarks.tables", file=sys.stderr)
        return 1
    return 0


def _pages() -> Iterator[tuple[Path, str]]:
    """Each page with the text that it should have."""
    for page in _PAGES:
        before = page.read_text(encoding="utf-8")
        yield page, _MARKED.sub(lambda found: found[1] + _table(found[2]) + found[3], before)
    study, page = _HERE.parent / _STUDY, _HERE.parent / _STUDY_PAGE
    if study.exists() or page.exists():
        yield page, page_of(study, f"../{_STUDY.as_posix()}")


def _table(name: str) -> str:
    source, make = TABLES[name]
    path = _HERE / "results" / f"{source}.json"
    if not path.exists():
        return f"Not measured yet: `python -m benchmarks {source}`.\n"
    value = json.loads(path.read_text(encoding="utf-8"))
    hardware = value["hardware"]
    place = f"{hardware['cpu']}, {hardware['cores']} cores"
    if gpu_name := hardware.get("gpu"):
        place += f", {gpu_name}"
    return "\n".join([*make(value["results"]), "", f"({place}, {value['date']})", ""])


def _between(low: float, high: float, digits: int = 1, times: float = 100) -> str:
    return f"{times * low:+.{digits}f} to {times * high:+.{digits}f}"


def accuracy(results: list[Result]) -> list[str]:
    """The product's own runs beside the baselines."""

    def row(run: AccuracyRun) -> list[str]:
        own = run.test.accuracy
        return [
            SETS[run.data],
            " + ".join(run.settings.encoders),
            *(_baseline(run, name) for name in ("tfidf", "last_layer", "last_four", "best_block")),
            f"**{percent(own.value)}** ({percent(own.low)} to {percent(own.high)})",
            percent(run.cv.accuracy.value),
        ]

    columns = ["data", "encoders", "TF-IDF", "last layer", "last four", "best block"]
    return markdown_table(
        [*columns, "layerfuse (95% interval)", "nested"],
        (row(run) for run in map(AccuracyRun.model_validate, results) if not run.settings.prompts),
    )


def prompts(results: list[Result]) -> list[str]:
    """What a prompt brings a decoder's last layer, and the pipeline, without it and with it."""
    runs = list(map(AccuracyRun.model_validate, results))

    def row(asked: AccuracyRun) -> list[str]:
        (name,) = asked.settings.prompts
        plain = next(run for run in runs if run.data == asked.data and not run.settings.prompts)
        alone = [
            next((b for b in run.baselines if (b.name, b.encoder) == ("last_layer", name)), None)
            for run in (plain, asked)
        ]
        return [
            SETS[asked.data],
            ", then ".join(
                dict.fromkeys(" + ".join(run.settings.encoders) for run in (plain, asked))
            ),
            *("–" if own is None or own.test is None else percent(own.test.accuracy.value)
              for own in alone),
            *(percent(run.cv.accuracy.value) for run in (plain, asked)),
            *(percent(run.test.accuracy.value) for run in (plain, asked)),
            "yes" if any(block.encoder == name for block in asked.selection.blocks) else "no",
        ]  # fmt: skip

    parts = ("last layer alone", "pipeline, nested", "pipeline, test")
    header = [f"{part}: {way}" for part in parts for way in ("plain", "prompted")]
    return markdown_table(
        ["data", "encoders", *header, "prompted block chosen"],
        (row(run) for run in runs if run.settings.prompts),
    )


def _baseline(run: AccuracyRun, name: str) -> str:
    """Of several encoders the one that is better on training rows."""
    own = (baseline for baseline in run.baselines if baseline.name == name)
    best = max(own, key=lambda baseline: baseline.cv.accuracy.value)
    assert best.test is not None
    return percent(best.test.accuracy.value)


def _ratio(compared: Result) -> str:
    low, high = compared["ratio_min"], compared["ratio_max"]
    return f"{compared['ratio_median']:.2f} ({low:.2f} to {high:.2f})"


def _what(case: Result) -> str:
    texts = f"{case['texts']} texts of {SETS[case['dataset']]}"
    return f"{case['encoder']} ({case['dtype']}), {texts}"


def extraction(results: list[Result]) -> list[str]:
    """Seconds of both, and the ratio."""

    def row(case: Result) -> list[str]:
        return [
            f"{_what(case)}, {case['max_length']} tokens",
            f"{case['layers']} x {len(case['poolings'])}",
            f"{case['ours_median_s']:.2f}",
            case["peer"],
            f"{case['peer_median_s']:.2f}",
            _ratio(case),
        ]

    columns = ["texts", "layers x poolings", "s", "peer", "its s", "ours / peer"]
    return markdown_table(columns, map(row, results))


def backends(results: list[Result]) -> list[str]:
    """For each setting ours in terms of its time, and the accuracy of one head."""

    def cells(case: Result, number: int) -> Iterator[str]:
        row = case["rows"][number]
        yield f"{row['median_s']:.2f}"
        yield f"{row['ours_to_it']:.2f}"
        yield percent(row["accuracy"]) if "accuracy" in row else ""

    def row(number: int) -> list[str]:
        name = results[0]["rows"][number]["setting"]
        return [name, *(cell for case in results for cell in cells(case, number))]

    header = ["last layer by"]
    for case in results:
        header += [f"{case['encoder']}, {set_name(case['dataset'])}: s", "ours / it", "accuracy"]
    return markdown_table(header, map(row, range(len(results[0]["rows"]))))


def profile(results: list[Result]) -> list[str]:
    """Useful FLOP/s against the peak, and where the time goes."""

    def row(case: Result) -> list[str]:
        shares = case["time_shares"]
        peak = sum(case["gemm_peak_flops_per_s"]) / len(case["gemm_peak_flops_per_s"])
        return [
            _what(case),
            f"{case['useful_flops_per_s'] / 1e9:.0f}",
            f"{peak / 1e9:.0f}",
            f"{100 * case['share_of_peak']:.0f}",
            *(f"{100 * shares[kind]:.0f}" for kind in _KINDS),
        ]

    columns = ["texts", "GFLOP/s", "peak", "% of peak", *(f"{kind} %" for kind in _KINDS)]
    return markdown_table(columns, map(row, results))


def predict(results: list[Result]) -> list[str]:
    """Bulk and single texts, against the whole encoder and against sentence-transformers."""

    def row(case: Result) -> list[str]:
        depth = case["highest_layer"] / case["n_layers"]
        whole, peer = case["against_full_encoder"], case["against_sentence_transformers"]
        return [
            f"{case['encoder']}, {case['texts']} texts of {SETS[case['dataset']]}",
            f"{case['highest_layer']} of {case['n_layers']} ({depth:.2f})",
            *(_ratio(compared) for compared in (whole, peer)),
            f"{1e3 * case['single_text_median_s']:.1f}",
            f"{1e3 * case['peer_single_text_median_s']:.1f}",
            f"{case['fresh_process']['ours_median_s']:.1f}",
            _ratio(case["fresh_process"]),
        ]

    columns = ["texts", "highest layer", "time / whole encoder's", "time / peer's"]
    single = ["one text, ms", "peer's, ms", "fresh process, s", "over transformers alone"]
    return markdown_table([*columns, *single], map(row, results))


def scoring(results: list[Result]) -> list[str]:
    """Time against scikit-learn's, and whether the blocks ranked first are as good."""

    def row(case: Result) -> list[str]:
        timed = {peer["peer"].partition(",")[0]: peer for peer in case.get("peers", ())}
        times = [
            f"{timed[name]['peer_over_ours']:.0f}" if name in timed else "–"
            for name in ("RidgeClassifierCV", "LogisticRegressionCV")
        ]
        ours = f"{case['ours_median_s']:.1f}" if timed else "–"
        first = behind = "–"
        if ranking := case.get("ranking"):
            first = f"{ranking['first']} ({ranking['rows']:,} rows)"
            behind = f"{ranking['points_behind']:.1f}"
        name = f"{SETS[case['dataset']]}, {case['rows']:,} rows"
        return [name, f"{case['blocks']}", ours, *times, first, behind]

    columns = [
        "data",
        "blocks",
        "s",
        "RidgeClassifierCV, times ours",
        "LogisticRegressionCV, times",
    ]
    return markdown_table(
        [*columns, "ranked first", "points behind the slow method's"], map(row, results)
    )


def fit_time(results: list[Result]) -> list[str]:
    """Seconds of fits with stored embeddings."""

    def row(case: Result) -> list[str]:
        return [
            case["fit"],
            *(f"{case[key]:.1f}" for key in ("total_median_s", "learning_median_s")),
        ]

    columns = ["fit", "whole process, s", "learning, s"]
    return markdown_table(columns, map(row, (case for case in results if "fit" in case)))


def fusions(results: list[Result]) -> list[str]:
    """Mean test accuracy over seeds: fusions down, sets across."""

    def row(number: int) -> list[str]:
        ways = [[case["fusions"][number]["test"] for case in own] for own in sets.values()]
        first = results[0]["fusions"][number]
        return [f"{first['fusion']}, {first['head']}", *(_mean(own) for own in ways)]

    sets = _by_set(results)
    chosen = ["chosen by the search"]
    chosen += [_mean([case["test"]["value"] for case in own]) for own in sets.values()]
    columns = ["fusion, head"]
    columns += [f"{SETS[name]} ({_seeds(len(own))})" for name, own in sets.items()]
    return markdown_table(columns, [chosen, *map(row, range(len(results[0]["fusions"])))])


def verdicts(results: list[Result]) -> list[str]:
    """The search's pipeline: nested against test, and its gains on test rows."""

    def row(case: Result) -> list[str]:
        best = min(
            (found for name, found in case["against"].items() if name.startswith("last_layer")),
            key=lambda found: found["difference"],
        )
        block = case["against"]["best_block"]
        gap, width = case["nested_minus_test"], case["joint_half_width"]
        return [
            f"{SETS[case['dataset']]}, seed {case['seed']}",
            percent(case["nested"]["value"]),
            percent(case["test"]["value"]),
            f"{100 * gap:+.1f} (± {100 * width:.1f})",
            *(
                f"{100 * found['difference']:+.1f} ({_between(found['low'], found['high'])})"
                for found in (best, block)
            ),
        ]

    columns = ["", "nested", "test", "gap (joint interval)", "over the best last layer"]
    return markdown_table([*columns, "over the best block"], map(row, results))


def complementarity(results: list[Result]) -> list[str]:
    """Rank correlation of each number with the gain in accuracy on rows it never saw."""
    last = results[-1]["correlations"]
    groups = ("all", "two encoders", "with the best block")
    sets = [result for result in results if result["dataset"] in SETS]

    def row(name: str) -> list[str]:
        cells = []
        for group in groups:
            found = last[group]["accuracy_gain"][name]
            interval = _between(found["low"], found["high"], digits=2, times=1)
            cells.append(f"{found['value']:+.2f} ({interval})")
        ways = [case["correlations"]["two encoders"]["accuracy_gain"][name] for case in sets]
        own = (f"{found['value']:+.2f}" for found in ways)
        return [name.replace("_", " "), *cells, *own]

    names = sorted(
        last["all"]["accuracy_gain"],
        key=lambda name: -last["two encoders"]["accuracy_gain"][name]["value"],
    )
    columns = ["number on half A", *(f"{group}" for group in groups)]
    return markdown_table([*columns, *(SETS[case["dataset"]] for case in sets)], map(row, names))


def ablation(results: list[Result]) -> list[str]:
    """Each step's test accuracy on each set, and its gain over the step before."""

    def cell(case: Result, step: int) -> str:
        own = case["steps"][step]
        mean = percent(statistics.mean(seed["test"] for seed in own["seeds"]))
        if own["gain"] is None:
            return mean
        gain = own["gain"]
        return f"{mean} ({100 * gain['value']:+.1f}, {_between(gain['low'], gain['high'])})"

    def cost(step: int, key: str) -> float:
        seeds = [seed for case in results for seed in case["steps"][step]["seeds"]]
        return statistics.median(seed[key] for seed in seeds)

    def row(step: int) -> list[str]:
        name = results[0]["steps"][step]["step"]
        costs = (f"{cost(step, key):.0f}" for key in ("ms_per_text", "memory_mb", "fit_s"))
        return [name, *(cell(case, step) for case in results), *costs]

    header = ["", *(set_name(case["dataset"]) for case in results), "ms a text", "MB", "fit, s"]
    return markdown_table(header, map(row, range(len(results[0]["steps"]))))


def few_labels(results: list[Result]) -> list[str]:
    """The automatic choice with few rows of each class, and what it gains over other ways."""

    def row(case: Result) -> list[str]:
        gain = case["gains"]["last layer of mpnet"]
        interval = _between(gain["low"], gain["high"])
        others = ("last layer of mpnet", "greedy", "all layers", "tfidf")
        return [
            f"{set_name(case['dataset'])}, {case['encoders']}",
            str(case["per_class"]),
            percent(case["accuracy"]["auto"]),
            f"{100 * gain['gain']:+.1f} ({interval})",
            *(percent(case["accuracy"][way]) for way in others),
            f"{case['nested_holds']} of {len(case['draws'])}",
        ]

    header = [
        "", "rows a class", "auto", "over mpnet's last layer", "mpnet's last layer", "greedy",
        "all layers", "TF-IDF", "nested holds",
    ]  # fmt: skip
    return markdown_table(header, map(row, results))


def scaling(results: list[Result]) -> list[str]:
    """Seconds and peak memory of each stage: rows down, stages across, slopes last."""
    *cases, last = results
    slopes = last["slopes"]

    def cells(case: Result) -> Iterator[str]:
        for own in (case["stages"].get(name) for name in slopes):
            yield "–" if own is None else f"{own['seconds']:.3g} s, {own['peak_mb']:,.0f} MB"

    lines = [[f"{case['rows']:,}", *cells(case)] for case in cases]
    for name, key in (("slope of time", "seconds"), ("slope of memory", "peak_mb")):
        lines.append([name, *(f"{own[key]:.2f}" for own in slopes.values())])
    return markdown_table(["rows", *slopes], lines)


def cluster(results: list[Result]) -> list[str]:
    """Both engines' times, and what Ray adds."""

    def row(case: Result) -> list[str]:
        local, ray = case["local"], case["ray"]
        return [
            f"{case['rows']:,} texts, {case['threads']} thread, load {local['load_before']:.1f}",
            *(
                f"{own[key]:.0f}"
                for key in ("seconds", "processor_seconds")
                for own in (local, ray)
            ),
            *(
                f"{100 * (ray[key] / local[key] - 1):+.0f}"
                for key in ("seconds", "processor_seconds")
            ),
        ]

    header = [
        *("", "local, s", "Ray, s", "local, CPU s", "Ray, CPU s"),
        *("overhead, %", "overhead in CPU time, %"),
    ]
    return markdown_table(header, map(row, (case for case in results if "local" in case)))


def abstention(results: list[Result]) -> list[str]:
    """What was promised of new texts, and what came of it; means over splits."""

    def row(case: Result) -> list[str]:
        cells = [set_name(case["dataset"]), percent(case["accuracy"])]
        for name, found in case.items():
            promised = f"{100 * float(name.split()[1]):.0f}%" if " " in name else ""
            if name.startswith("coverage"):
                size = f"{found['size']:.2f} labels"
                cells.append(f"{promised}: {percent(found['covered'])} ({size})")
            elif name.startswith("target"):
                none = f"; none in {found['none_kept']}" if found["none_kept"] else ""
                kept = f"{100 * found['kept']:.0f}% decided{none}"
                cells.append(f"{promised}: {found['met']} of {found['of']} ({kept})")
        return cells

    header = ["data", "accuracy", *["sets of labels: covered (mean size)"] * 2]
    return markdown_table([*header, *["target accuracy: met (share)"] * 2], map(row, results))


def label_errors(results: list[Result]) -> list[str]:
    """Average precision at which planted errors are ranked, in percent."""

    def row(case: Result) -> list[str]:
        found = case["average_precision"]
        return [
            f"{set_name(case['dataset'])}, {' + '.join(case['encoders'])}",
            f"{case['planted']:,} of {case['rows']:,}",
            percent(case["accuracy"]),
            *(percent(found[name]) for name in ("audit", "tfidf")),
            f"{100 * case['lead']['value']:+.1f} ± {100 * case['lead']['se']:.1f}",
            percent(found["pipeline"]),
        ]

    header = [
        "data", "planted", "nested accuracy", "`audit --labels`", "cleanlab on TF-IDF",
        "difference ± standard error", "on the pipeline alone",
    ]  # fmt: skip
    return markdown_table(header, map(row, results))


def windows(results: list[Result]) -> list[str]:
    """Accuracy on test rows of what was read, and the gain over truncation at 128 tokens."""

    def row(case: Result) -> list[str]:
        cells = [f"{case['encoder']}, {case['case']}", f"{100 * case['read_share']:.0f}%"]
        for selection in ("last", "greedy"):
            own = case[selection]
            gain, low, high = own["gain"]
            found = f"{100 * gain:+.1f} ({_between(low, high)})"
            baseline = case["max_length"] == 128 and case["windows"] is None
            cells += [percent(own["test_accuracy"]), "" if baseline else found]
        return [*cells, f"{case['cpu_ms_per_text']:.1f}"]

    header = ["what is read", "share of tokens", "last layer, test", "gain"]
    return markdown_table(
        [*header, "chosen layers, test", "gain", "CPU ms/text"], map(row, results)
    )


def demo(results: list[Result]) -> list[str]:
    """What the demo prints."""
    printed = io.StringIO()
    console = Console(file=printed, width=_COLUMNS, markup=False, highlight=False)
    render(RunReport.model_validate(results[0]), console)
    lines = (line.rstrip() for line in printed.getvalue().strip("\n").splitlines())
    return ["```text", *lines, "```"]


def _by_set(results: list[Result]) -> dict[str, list[Result]]:
    names = dict.fromkeys(case["dataset"] for case in results)
    return {name: [case for case in results if case["dataset"] == name] for name in names}


def _mean(shares: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.1f}{spread}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def gpu(results: list[Result]) -> list[str]:
    sections = {result["section"]: result.get("results", {}) for result in results}
    rows = []
    for dataset in ("mr", "r8"):
        times = sections.get("minilm", {}).get(dataset, {}).get("times", {})
        name = f"minilm, {SETS[dataset]}"
        rows += [
            [name, way, f"{time['median_s']:.2f}", f"{time['tokens_per_s']:,.0f}", ""]
            for way, time in times.items()
        ]
    for section, name in (("llama_7b", "Llama, 7B"), ("qwen_7b", "Qwen2.5, 7B")):
        rows += [
            [
                *(name, way, f"{time['median_s']:.2f}", f"{time['tokens_per_s']:,.0f}"),
                percent(time["share_of_peak"]),
            ]
            for way, time in sections.get(section, {}).get("times", {}).items()
            if "median_s" in time
        ]
    header = ["model", "what is read", "s", "tokens/s", "share of the bf16 peak"]
    return markdown_table(header, rows, left=2)


def cpu_int8(results: list[Result]) -> list[str]:
    """All layers in 8 bits against bfloat16 on the CPU beside the GPU."""
    cases = next((one["results"] for one in results if one["section"] == "cpu_int8"), {})
    rows = []
    for case, result in cases.items():
        times = {} if case == "note" else result["times"]
        medians = [times[dtype]["median_s"] for dtype in times if "median_s" in times[dtype]]
        if len(medians) == 2:  # and not cut off by the section's time
            int8, bfloat16 = medians
            rows.append([case, f"{int8:.2f}", f"{bfloat16:.2f}", f"{int8 / bfloat16:.2f}"])
    return markdown_table(["encoder's shape", "int8, s", "bfloat16, s", "ratio"], rows)


def languages(results: list[Result]) -> list[str]:
    """Accuracy in English, out of fold, and in each other language."""
    names = list(results[0]["accuracy"])

    def row(case: Result) -> list[str]:
        others = (f"{100 * case['accuracy'][name]:.0f}" for name in names)
        return [case["way"], f"{100 * case['nested_english']:.0f}", *others, percent(case["mean"])]

    titles = [name.capitalize() for name in names]
    return markdown_table(["encoder", "English, nested", *titles, "mean of six"], map(row, results))


TABLES: dict[str, tuple[str, Callable[[list[Result]], list[str]]]] = {
    "accuracy": ("accuracy", accuracy),
    "prompts": ("accuracy", prompts),
    "demo": ("demo", demo),
    "extraction": ("extraction", extraction),
    "backends": ("backends", backends),
    "predict": ("predict", predict),
    "profile": ("profile", profile),
    "scoring": ("scoring", scoring),
    "fit_time": ("fit_time", fit_time),
    "fusions": ("fusions", fusions),
    "verdicts": ("fusions", verdicts),
    "complementarity": ("complementarity", complementarity),
    "ablation": ("ablation", ablation),
    "few_labels": ("few_labels", few_labels),
    "abstention": ("abstention", abstention),
    "label_errors": ("label_errors", label_errors),
    "windows": ("windows", windows),
    "languages": ("languages", languages),
    "gpu": ("gpu", gpu),
    "cpu_int8": ("gpu", cpu_int8),
    "scaling": ("scaling", scaling),
    "cluster": ("cluster", cluster),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
