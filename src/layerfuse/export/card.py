"""A model card that the Hub renders: measured figures as metadata, cost, limits, how to load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from layerfuse.bundle import Bundle, EncoderSpec
from layerfuse.data import ENCODERS
from layerfuse.metrics import Evaluation, LabelSetEvaluation
from layerfuse.report.run_report import RunReport
from layerfuse.report.tables import interval, percent, plural, sentence_case

_BAR = 30  # characters
_MOST_CLASSES = 50


def make_card(repository: str, bundle: Bundle, report: RunReport | None) -> str:
    """The card of a bundle; texts of the data are never in it.

    Parameters
    ----------
    repository : str
        ``owner/name``.
    bundle : Bundle
    report : RunReport or None
        Of the run that made the bundle; without it the card has what the bundle knows.
    """
    from huggingface_hub import EvalResult, ModelCardData

    measured = bundle.facts.cv if report is None else report.measured
    results = []
    if report is not None and measured is not None:
        split = "train" if report.test is None else report.data.test_split
        name = report.settings.data.removeprefix("hub:") if "hub:" in report.settings.data else None
        for kind, title, value in (
            (bundle.space.metric.casefold(), sentence_case(bundle.space.metric), measured.headline),
            ("f1", "Macro-F1", measured.macro_f1),
        ):
            results.append(
                EvalResult(
                    task_type="text-classification",
                    dataset_type=name or report.data.name,
                    dataset_name=report.data.name,
                    dataset_split=split,
                    metric_type=kind,
                    metric_name=f"{title}, {report.rows_in_words}",
                    metric_value=round(value.value, 4),
                )
            )
    data = ModelCardData(
        library_name="layerfuse",
        pipeline_tag="text-classification",
        tags=["layerfuse", "text-classification"],
        base_model=[hub for spec in bundle.encoders if (hub := _hub_name(spec))] or None,
        model_name=repository.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n" + "\n".join(_page(repository, bundle, report, measured))


def _page(
    repository: str,
    bundle: Bundle,
    report: RunReport | None,
    measured: Evaluation | LabelSetEvaluation | None,
) -> Iterator[str]:
    classes = [str(label) for label in bundle.space.classes.tolist()]
    yield f"# {repository.rpartition('/')[2]}\n"
    yield "A text classifier on layers of frozen language models, made by layerfuse.\n"
    more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
    yield f"**Classes:** {', '.join(f'`{name}`' for name in classes[:_MOST_CLASSES])}{more}.\n"
    yield "## How to use it\n"
    yield "```python\nfrom huggingface_hub import snapshot_download\nimport layerfuse\n"
    moved = [spec.name for spec in bundle.encoders if _is_local(spec)]
    places = ", ".join(f'"{name}": "path/to/{name}"' for name in moved)
    extra = f", encoders={{{places}}}" if places else ""
    yield f'classifier = layerfuse.load(snapshot_download("{repository}"){extra})'
    yield 'classifier.predict(["a text"])\n```\n'
    yield "## What it reads\n"
    yield from (f"- `{block}`" for block in bundle.model.blocks)
    yield "\nEncoder, layer (0 is the embedding output) and pooling; encoders are cut above.\n"
    for spec in bundle.encoders:
        origin = _hub_name(spec) or "a local model, which has to be at hand"
        windows = f"{spec.max_windows} windows of " if spec.windows else ""
        yield f"- `{spec.name}`: {origin}; at most {windows}{spec.max_length} tokens of a text"
    yield f"\nFusion: {bundle.model.model.fusion.name}; head: {bundle.model.model.head.kind}.\n"
    if measured is not None:
        rows = "training rows, out of fold" if report is None else report.rows_in_words
        yield f"## How good it is\n\nOn {plural(measured.n, 'row')} ({rows}):\n"
        yield "| metric | value | 95% interval |\n| --- | ---: | ---: |"
        pairs = ((bundle.space.metric, measured.headline), ("macro-F1", measured.macro_f1))
        for title, each in pairs:
            yield f"| {title} | {percent(each.value)} | {interval(each.low, each.high)} |"
        ece = measured.ece
        yield f"| calibration error | {percent(ece.value)} | {interval(ece.low, ece.high)} |\n"
    if report is not None:
        yield f"{report.verdict.sentence}\n"
        yield from _layers(report)
        yield from _cost_and_limits(report)


def _layers(report: RunReport) -> Iterator[str]:
    """Accuracy of each layer at its best pooling, as bars of text."""
    used = {(block.encoder, block.layer) for block in report.selection.blocks}
    yield "## Layers\n\nAccuracy of each layer alone (leave-one-out); `*` marks those in use.\n"
    yield "```text"
    for encoder in report.profile.encoders:
        best: dict[int, float] = {}
        for score in report.profile.of(encoder):
            layer = score.block.layer
            best[layer] = max(score.accuracy, best.get(layer, 0.0))
        for layer, accuracy in sorted(best.items()):
            mark = "*" if (encoder, layer) in used else " "
            bar = "█" * round(_BAR * accuracy)
            yield f"{encoder} {layer:>3} {mark} {bar:<{_BAR}} {percent(accuracy)}"
    yield "```\n"


def _cost_and_limits(report: RunReport) -> Iterator[str]:
    cost, data = report.cost.pipeline, report.data
    yield "## Cost\n"
    yield f"- {cost.parameters / 1e6:.1f} million parameters are computed"
    yield f"- {cost.memory_mb:.0f} MB of weights"
    yield f"- {cost.ms_per_text:.1f} ms for a text, on {report.environment.cpu}\n"
    yield "## Limits\n"
    yield f"- It learned from {plural(data.learned_rows, 'row')} of {data.name}; texts of another"
    yield "  kind may be classified worse than the figures say."
    yield "- It always answers with one of its classes, for texts of none of them too."
    if data.truncated_share:
        yield f"- {percent(data.truncated_share)} of the training texts were longer than it reads."
    yield ""


def _is_local(spec: EncoderSpec) -> bool:
    return _hub_name(spec) is None


def _hub_name(spec: EncoderSpec) -> str | None:
    """Where others find the encoder, or None for a folder of this machine."""
    if spec.source in ENCODERS:
        return ENCODERS[spec.source].upstream
    local = Path(spec.source).is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", spec.source)
    return None if local else spec.source
