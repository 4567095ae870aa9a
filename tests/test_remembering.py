"""Analyses kept in the store: used again for the same fit, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import save_model
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier

TEXTS = [f"a {'good' if row % 2 else 'bad'} text about {row % 7} things" for row in range(40)]
LABELS = ["yes" if row % 2 else "no" for row in range(40)]


class Lines:
    """A reporter that keeps notes and the names of the steps."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def task(self, name: str, total: int, unit: str) -> Any:
        from contextlib import nullcontext

        self.steps.append(name)
        return nullcontext(lambda count: None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    folder = save_model("bert", tmp_path_factory.mktemp("bert"))
    return FrozenEncoder.from_pretrained(folder, dtype="float32", device="cpu")


def fit(
    encoder: FrozenEncoder, store: Path | None, labels: list[str] = LABELS, **settings: Any
) -> tuple[LayerFusionClassifier, Lines]:
    lines = Lines()
    classifier = LayerFusionClassifier(
        [encoder], store=store, reporter=lines, **{"cv": 2, "max_blocks": 2, **settings}
    )
    return classifier.fit(TEXTS, labels), lines


def recalled(lines: Lines) -> bool:
    return any("analysed before" in line for line in lines.notes)


def test_the_same_fit_is_not_worked_out_twice(encoder: FrozenEncoder, tmp_path: Path) -> None:
    first, before = fit(encoder, tmp_path)
    second, after = fit(encoder, tmp_path)
    assert not recalled(before)
    assert recalled(after)
    assert "scoring" in before.steps
    assert not {"scoring", "nested resampling"} & set(after.steps)
    assert second.profile_ == first.profile_
    assert second.selection_ == first.selection_
    assert second.plan_ == first.plan_
    assert second.cv_ == first.cv_
    np.testing.assert_array_equal(second.predict_proba(TEXTS), first.predict_proba(TEXTS))
    ours, theirs = (model.run_baselines() for model in (second, first))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.out_of_fold, b.out_of_fold)


@pytest.mark.parametrize(
    "settings",
    [{"cv": 3}, {"random_state": 1}, {"selection": "best"}, {"head": "logistic"},
     {"max_blocks": 1}, {"layers": (0, 1)}, {"pooling": ("max",)}, {"class_weight": "balanced"},
     {"budget": {"dims": 10_000}}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_other_settings_are_worked_out(
    encoder: FrozenEncoder, tmp_path: Path, settings: dict[str, Any]
) -> None:
    fit(encoder, tmp_path)
    assert not recalled(fit(encoder, tmp_path, **settings)[1])


def test_other_labels_are_worked_out(encoder: FrozenEncoder, tmp_path: Path) -> None:
    fit(encoder, tmp_path)
    assert not recalled(fit(encoder, tmp_path, ["yes", *LABELS[1:]])[1])


def test_without_a_store_nothing_is_kept(encoder: FrozenEncoder) -> None:
    fit(encoder, None)
    assert not recalled(fit(encoder, None)[1])


def test_a_damaged_analysis_is_worked_out_again(encoder: FrozenEncoder, tmp_path: Path) -> None:
    first, _ = fit(encoder, tmp_path)
    (tensors,) = tmp_path.glob("analyses/*/tensors.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-40])
    again, lines = fit(encoder, tmp_path)
    assert not recalled(lines)
    assert again.plan_ == first.plan_
    assert recalled(fit(encoder, tmp_path)[1])


def test_analyses_are_no_sections_of_the_store(encoder: FrozenEncoder, tmp_path: Path) -> None:
    fit(encoder, tmp_path)
    store = EmbeddingStore(tmp_path)
    assert [section.encoder for section in store.sections()] == [encoder.name]
    assert store.verify() == []
    store.prune(lambda section: True)
    assert store.sections() == []
