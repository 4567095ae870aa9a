"""The lexical block: word counts, class centroids of other folds, and fits with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from commandline import run, succeed, write_csv
from families import TinyModels
from layerfuse import LayerFusionClassifier, load
from layerfuse.blocks import LEXICAL_BLOCK, BlockRef
from layerfuse.encoders import count_words
from layerfuse.errors import ConfigError, DataError, FormatError
from layerfuse.pipeline import predict_held
from layerfuse.probing import ClassCentroids, score_blocks
from layerfuse.targets import Targets

WORDS = [f"word{number}" for number in range(60)]


def texts_of(labels: list[int], seed: int = 0, share: float = 0.3) -> list[str]:
    """Texts of 12 words, of which about ``share`` tell the label."""
    random = np.random.default_rng(seed)
    return [
        " ".join(
            WORDS[label * 4 + random.integers(4)]
            if random.random() < share
            else WORDS[12 + random.integers(48)]
            for _ in range(12)
        )
        for label in labels
    ]


LABELS = [0, 1, 2] * 20


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_training_row_has_the_values_of_the_other_folds(size: int, weighted: bool) -> None:
    """Against means by hand; a group lies in one fold."""
    counts = count_words(texts_of(LABELS))
    groups = None if size == 1 else np.arange(60) // size
    weights = np.linspace(0.5, 2, 60, dtype=np.float32) if weighted else None
    targets = replace(Targets.from_labels(LABELS, groups), weights=weights)
    fitted, found = ClassCentroids.fit(counts, targets)
    members = targets.matrix if weights is None else targets.matrix * weights[:, None]
    rows = np.asarray(counts[:, fitted.columns].todense()) * fitted.idf
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folds = targets.folds(5, 0)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(60))
    for others, held in folds:
        means = rows[others].T @ members[others] / members[others].sum(axis=0)
        values = rows[held] @ means
        values -= values.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(found[held], (values - fitted.mean) * fitted.scale, atol=2e-4)
    for row in range(60):
        (fold,) = (others for others, held in folds if row in held)
        assert not np.isin(np.arange(60)[np.arange(60) // size == row // size], fold).any()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "kinds", "classes"), [(600, 20, 20), (600, 8, 50), (1000, 3, 3)])
def test_a_rows_own_label_is_not_in_its_values(n: int, kinds: int, classes: int) -> None:
    """Random labels and texts of few kinds, whose values would differ by their labels alone."""
    accuracy = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        texts = [f"kind{kind} own{row}" for row, kind in enumerate(random.integers(0, kinds, n))]
        labels = random.permutation(np.arange(n) % classes)
        blocks = {LEXICAL_BLOCK: count_words(texts)}
        accuracy.append(score_blocks(blocks, labels).best.accuracy)
    assert np.mean(accuracy) < 1 / classes + 2 * np.sqrt(1 / classes / n)


def test_a_new_text_is_compared_with_all_training_texts() -> None:
    """So labels of other rows are read, and its own cannot be."""
    targets = Targets.from_labels(LABELS)
    fitted, training = ClassCentroids.fit(count_words(texts_of(LABELS)), targets)
    new = fitted.transform(count_words(texts_of(LABELS, seed=1)))
    assert new.shape == training.shape == (60, 3)
    assert (new.argmax(axis=1) == LABELS).mean() > 0.8
    assert (training.argmax(axis=1) == LABELS).mean() > 0.8
    np.testing.assert_allclose(training.mean(axis=0), 0, atol=1e-5)
    assert training.var(axis=0).sum() == pytest.approx(1, abs=1e-3)


def test_labels_at_random_are_not_learned() -> None:
    """Many texts of one word each: a text's own label would give it away."""
    random = np.random.default_rng(0)
    accuracy = []
    for seed in range(20):
        texts = texts_of([0] * 80, seed=seed, share=0.0)
        labels = random.permutation([0, 1] * 40)
        _, found = ClassCentroids.fit(count_words(texts), Targets.from_labels(labels))
        accuracy.append((found.argmax(axis=1) == labels).mean())
    assert np.mean(accuracy) < 0.55


def test_texts_without_words_and_classes_of_one_row() -> None:
    targets = Targets.from_labels(["a", "a", "b", "c"])
    for texts in (["", " ", "", ""], ["x", "", "y z", "x"]):
        fitted, found = ClassCentroids.fit(count_words(texts), targets)
        assert np.isfinite(found).all()
        assert np.isfinite(fitted.transform(count_words(["q", ""]))).all()


def test_what_is_saved_gives_the_same_values() -> None:
    counts = count_words(texts_of(LABELS))
    fitted, _ = ClassCentroids.fit(counts, Targets.from_labels(LABELS))
    again = ClassCentroids.from_arrays(fitted.arrays())
    np.testing.assert_array_equal(again.transform(counts), fitted.transform(counts))
    with pytest.raises(DataError, match="columns"):
        fitted.transform(csr_matrix((2, 5), dtype=np.float32))
    columns = fitted.arrays()["columns"]
    for damaged in (columns[::-1], columns + 2.0**24, columns - columns[0] - 1):
        with pytest.raises(FormatError, match="columns"):
            ClassCentroids.from_arrays({**fitted.arrays(), "columns": damaged})


@pytest.mark.slow
def test_a_fit_chooses_words_where_they_tell_the_label(tiny: TinyModels, tmp_path: Path) -> None:
    texts, new = texts_of(LABELS), texts_of(LABELS, seed=1)
    model = LayerFusionClassifier([tiny("bert")], lexical=True, store=None).fit(texts, LABELS)
    assert LEXICAL_BLOCK in model.plan_.blocks
    without = LayerFusionClassifier([tiny("bert")], store=None).fit(texts, LABELS)
    assert LEXICAL_BLOCK not in {score.block for score in without.profile_}
    assert model.score(new, LABELS) > without.score(new, LABELS)
    # what was estimated is what new texts get
    assert abs(model.cv_.accuracy.value - model.score(new, LABELS)) < 0.15
    model.save(tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    np.testing.assert_array_equal(loaded.predict_proba(new), model.predict_proba(new))
    assert loaded.get_params()["lexical"] is True
    saved = (tmp_path / "bundle" / "tensors.safetensors").read_bytes()
    assert b"word" not in saved


@pytest.mark.slow
def test_rows_beyond_the_sample_are_learned_from_too(tiny: TinyModels) -> None:
    labels = LABELS * 3
    texts = texts_of(labels)
    fits = [
        LayerFusionClassifier(
            [tiny("bert")], lexical=True, sample_size=size, head="ridge", store=None
        )
        for size in (60, 1000)
    ]
    small, whole = (model.fit(texts, labels) for model in fits)
    assert LEXICAL_BLOCK in small.plan_.blocks
    place = small.plan_.blocks.index(LEXICAL_BLOCK)
    axes = small.model_.axes[place]
    assert isinstance(axes, ClassCentroids)
    expected, _ = ClassCentroids.fit(count_words(texts), Targets.from_labels(labels))
    np.testing.assert_allclose(axes.idf, expected.idf)
    new = texts_of(LABELS, seed=1)
    assert small.score(new, LABELS) > 0.8 < whole.score(new, LABELS)


def test_a_name_is_read_back() -> None:
    assert BlockRef.parse(str(LEXICAL_BLOCK)) == LEXICAL_BLOCK
    with pytest.raises(ConfigError):
        BlockRef.parse("mpnet:0:tfidf")


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_shared_sums_give_what_each_fold_alone_gives(tiny: TinyModels, weighted: bool) -> None:
    """A ridge head with words, out of fold, against fits on the rows of each fold."""
    texts = texts_of(LABELS)
    weights = np.linspace(0.5, 2, 60) if weighted else None
    model = LayerFusionClassifier(
        [tiny("bert")], lexical=True, fusion="concat", head="ridge", store=None
    )
    model.fit(texts, LABELS, sample_weight=weights)
    record = model.fit_record_
    (found,) = record.sample.out_of_fold([lambda *_: model.plan_], record.search)
    assert LEXICAL_BLOCK in model.plan_.blocks
    sample, counts = record.sample, count_words(texts)
    for rows, held in record.search.folds:
        own = sample.targets[rows]
        words, known = ClassCentroids.fit(counts[rows], own)
        mine = np.zeros((60, 3), dtype=np.float32)
        mine[rows], mine[held] = known, words.transform(counts[held])
        coordinates = {**sample.coordinates(model.plan_.blocks), LEXICAL_BLOCK: mine}
        expected = predict_held(model.plan_, coordinates, own, rows, held)
        np.testing.assert_allclose(found.logits[held], expected, atol=2e-3)


@pytest.mark.slow
def test_a_run_on_words_predicts_and_is_not_exported(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = [f"class {label}" for label in LABELS]
    write_csv(Path("train.csv"), list(zip(texts_of(LABELS), labels, strict=True)))
    encoder = f"tiny={tiny('bert')}"
    fitted = succeed(
        *(
            "fit",
            "train.csv",
            "-e",
            encoder,
            "--selection",
            "best",
            "--head",
            "ridge",
            "--cv",
            2,
            "--lexical",
        ),
        *("--out", "run", "--no-report", "--json"),
    ).json
    assert fitted["selection"]["blocks"] == [{"encoder": "lexical", "layer": 0, "pooling": "tfidf"}]
    assert fitted["cost"]["pipeline"]["dims"] == 3
    assert 0 < fitted["cost"]["pipeline"]["ms_per_text"] < 50
    done = succeed("predict", "run", "--text", "word0 word1 word2", "--json").json
    assert "class 0" in str(done)
    refused = run("export", "run", "--format", "onnx", "--out", "onnx")
    assert refused.code == 2
    assert "--lexical" in refused.err
    assert not Path("onnx").exists()


@pytest.mark.parametrize(
    ("one", "other", "n_words"),
    [
        ("Don't PANIC!", "don t panic", 5),
        ("हिन्दी भाषा", "हिन्दी\u00a0भाषा", 3),
        ("caf\u00e9", "cafe\u0301", 1),
        ("我喜欢电影。", "我 喜 欢 电 影", 9),
        ("snake_case", "snake case", 3),
        ("यह अच्छी है।", "यह अच्छी है", 5),
        ("فيلم جميل،", "فيلم جميل", 3),
        ("\ufefffilm\u200b", "film", 1),
        ("人々は", "人 々 は", 5),
        ("😀👍", "😀 👍", 3),
    ],
)
def test_words_of_many_scripts(one: str, other: str, n_words: int) -> None:
    first, second = count_words([one, other])
    assert (first != second).nnz == 0
    assert first.nnz == n_words


def test_the_name_of_words_is_no_encoders(tiny: TinyModels) -> None:
    with pytest.raises(ConfigError, match="lexical"):
        LayerFusionClassifier([f"lexical={tiny('bert')}"]).fit(texts_of(LABELS), LABELS)


@pytest.mark.slow
def test_what_words_take_counts(tiny: TinyModels) -> None:
    model = LayerFusionClassifier([tiny("bert")], lexical=True, store=None).fit(
        texts_of(LABELS), LABELS
    )
    cost = model.costs_["lexical"]
    axes = next(a for a in model.model_.axes if isinstance(a, ClassCentroids))
    assert cost.dims == axes.rank == 3
    assert cost.memory_mb_at(0) == pytest.approx(4e-6 * sum(a.size for a in axes.arrays().values()))
    few = LayerFusionClassifier(
        [tiny("bert")], lexical=True, budget={"memory_mb": 1e-4}, store=None
    )
    with pytest.raises(ConfigError, match="budget leaves no block"):
        few.fit(texts_of(LABELS), LABELS)


@pytest.mark.parametrize("scale", [1e-7, 1e7])
def test_weights_count_at_any_scale(scale: float) -> None:
    counts, targets = count_words(texts_of(LABELS)), Targets.from_labels(LABELS)
    weights = np.random.default_rng(0).uniform(0.1, 9, 60)
    (one, values), (other, scaled) = (
        ClassCentroids.fit(counts, replace(targets, weights=weights * factor))
        for factor in (1.0, scale)
    )
    np.testing.assert_allclose(other.centroids, one.centroids, atol=1e-6)
    np.testing.assert_allclose(scaled, values, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_change_nothing_of_what_is_saved(
    tiny: TinyModels, tmp_path: Path, class_weight: str | None
) -> None:
    weights = np.random.default_rng(0).uniform(0.1, 9, 60)
    model = LayerFusionClassifier(
        [tiny("bert")], lexical=True, class_weight=class_weight, store=None
    )
    model.fit(texts_of(LABELS), LABELS, sample_weight=weights).save(tmp_path / "bundle")
    new = texts_of(LABELS, seed=1)
    np.testing.assert_array_equal(
        load(tmp_path / "bundle").predict_proba(new), model.predict_proba(new)
    )


def test_a_constant_block_has_a_logistic_score() -> None:
    blocks = {LEXICAL_BLOCK: count_words(["same"] * 20)}
    assert score_blocks(blocks, [0, 1] * 10, "logistic").best.accuracy <= 0.6
