"""The classifier: planted words are found, scikit-learn's contract holds, nothing leaks."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from families import VOCABULARY, TinyModels
from helpers import Notes, build, planted, sentences
from layerfuse import BlockRef, EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract
from layerfuse.classifier.fit_record import FitRecord
from layerfuse.embeddings import text_hashes
from layerfuse.errors import (
    ConfigError,
    DataError,
    LayerfuseError,
    LayerfuseWarning,
    NotAvailableError,
    NotFoundError,
)
from layerfuse.progress import reporting_to
from layerfuse.resources import Budget, pipeline_cost

pytestmark = pytest.mark.slow

TEXTS, LABELS = planted(160)
TEST_TEXTS, TEST_LABELS = planted(100, seed=1)


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels) -> LayerFusionClassifier:
    """Two models, two poolings, fitted on the planted words; tests must not change it."""
    return build(tiny, "bert", "llama", pooling=("mean", "last")).fit(TEXTS, LABELS)


class TestFitAndPredict:
    def test_planted_words_are_found(self, fitted: LayerFusionClassifier):
        assert fitted.score(TEST_TEXTS, TEST_LABELS) > 0.9
        proba = fitted.predict_proba(TEST_TEXTS)
        assert proba.shape == (100, 2)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert fitted.classes_.tolist() == ["bad", "good"]
        predicted = fitted.predict(TEST_TEXTS)
        np.testing.assert_array_equal(predicted, fitted.classes_[proba.argmax(axis=1)])

    def test_what_fit_leaves(self, fitted: LayerFusionClassifier):
        assert len(fitted.profile_) == 2 * 4 * 2
        assert fitted.model_.blocks == fitted.selection_.blocks
        assert 1 <= len(fitted.model_.blocks) <= 5
        assert [encoder.name for encoder in fitted.encoders_] == ["bert", "llama"]
        assert fitted.cv_.n == 160
        assert fitted.cv_.accuracy.value > 0.85
        assert fitted.truncated_share_ == 0
        stages = {"extract_s", "score_s", "search_s", "head_s", "total_s"}
        assert set(fitted.timings_) == stages
        assert fitted.timings_["total_s"] == pytest.approx(
            sum(fitted.timings_[name] for name in stages - {"total_s"}), abs=1
        )

    def test_fit_leaves_what_each_encoder_costs(self, fitted: LayerFusionClassifier):
        assert list(fitted.costs_) == ["bert", "llama"]
        for encoder in fitted.encoders_:
            cost = fitted.costs_[encoder.name]
            assert cost.parameters == encoder.layer_parameters
            assert cost.dims == encoder.dim
            assert cost.ms_per_text > 0
        cost = pipeline_cost(fitted.model_.blocks, fitted.costs_)
        assert cost.dims == 32 * len(fitted.model_.blocks)
        assert Budget(blocks=5).exceeded(cost) == []

    def test_a_second_fit_knows_the_costs_without_loading_a_model(self, tiny: TinyModels):
        first, second = (build(tiny, "bert").fit(TEXTS, LABELS) for _ in range(2))
        assert second.costs_ == first.costs_
        assert not second.encoders_[0].is_loaded

    def test_it_predicts_the_same_alone_and_among_others(self, fitted: LayerFusionClassifier):
        together = fitted.predict_proba(TEST_TEXTS[:20])
        alone = np.concatenate([fitted.predict_proba([text]) for text in TEST_TEXTS[:20]])
        np.testing.assert_allclose(alone, together, atol=1e-4)

    def test_fitting_twice_gives_the_same(self, tiny: TinyModels):
        one, other = (build(tiny, "bert").fit(TEXTS, LABELS) for _ in range(2))
        np.testing.assert_array_equal(
            one.predict_proba(TEST_TEXTS), other.predict_proba(TEST_TEXTS)
        )
        assert one.cv_ == other.cv_

    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    @pytest.mark.parametrize("n_classes", [2, 5])
    def test_two_and_five_classes(self, tiny: TinyModels, head: str, n_classes: int):
        texts, labels = planted(60 * n_classes, n_classes)
        model = build(tiny, "bert", head=head).fit(texts, labels)
        others, expected = planted(100, n_classes, seed=1)
        assert model.score(others, expected) > 0.9
        assert model.predict_proba(others).shape == (100, n_classes)
        assert len(set(model.predict(others))) == n_classes

    @pytest.mark.parametrize("selection", ["greedy", "top_k", "best", "last"])
    def test_every_way_to_choose(self, tiny: TinyModels, selection: str):
        model = build(tiny, "bert", "llama", selection=selection, max_blocks=2)
        model.fit(TEXTS, LABELS)
        n_blocks = {"best": {1}, "last": {2}, "top_k": {2}}.get(selection, {1, 2})
        assert len(model.model_.blocks) in n_blocks
        if selection == "last":
            assert [block.layer for block in model.model_.blocks] == [3, 3]
        assert model.score(TEST_TEXTS, TEST_LABELS) > 0.8

    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    @pytest.mark.parametrize("cv", [2, 5])
    @pytest.mark.parametrize("counts", [(2, 2), (2, 3), (4, 4), (2, 2, 2), (9, 2, 2), (4,) * 5])
    def test_a_few_rows_of_each_class_are_enough(
        self, tiny: TinyModels, head: str, cv: int, counts: tuple[int, ...]
    ):
        labels = [str(label) for label, count in enumerate(counts) for _ in range(count)]
        texts = sentences(len(labels))
        model = build(tiny, "bert", head=head, cv=cv).fit(texts, labels)
        assert set(model.predict(texts)) <= set(labels)
        assert model.cv_.n == len(labels)
        found = model.fit_record_.run_baselines()
        assert len(found) == 6 + len(model.plan_.blocks) - 1
        assert all(len(one.out_of_fold) == len(labels) for one in found)

    def test_a_rare_class_beside_frequent_ones(self, tiny: TinyModels):
        """Two rows of a class: it is missing from some folds."""
        texts, labels = planted(80)
        texts += ["ship grain ship", "grain ship grain"]
        labels += ["ship", "ship"]
        for head in ("ridge", "logistic"):
            model = build(tiny, "bert", head=head, cv=5).fit(texts, labels)
            assert model.predict_proba(texts).shape == (82, 3)
            assert model.predict(["ship grain ship"]).tolist() == ["ship"]

    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    def test_texts_that_say_nothing(self, tiny: TinyModels, head: str):
        """All texts are equal, so every feature is constant."""
        labels = ["a", "a", "b"] * 8
        for text in ("", "good film"):
            model = build(tiny, "bert", head=head).fit([text] * 24, labels)
            assert model.predict([text, "other words"]).tolist() == ["a", "a"]
            proba = model.predict_proba([text])
            assert proba[0, 0] > 0.5
            assert model.cv_.accuracy.value == pytest.approx(2 / 3)

    def test_truncated_texts_are_counted(self, tiny: TinyModels):
        texts = [f"{text} {'w1 ' * 30 * (row % 2)}" for row, text in enumerate(TEXTS)]
        with pytest.warns(LayerfuseWarning, match="50.0% of training texts were cut"):
            model = build(tiny, "bert", max_length=16).fit(texts, LABELS)
        assert model.truncated_share_ == 0.5

    def test_classes_that_look_like_one_or_like_none_are_warned_about(self, tiny: TinyModels):
        labels = list(LABELS)
        labels[0], labels[1] = "Good ", "n/a"
        with pytest.warns(LayerfuseWarning) as caught:
            build(tiny, "bert").fit(TEXTS, labels)
        said = "\n".join(str(one.message) for one in caught)
        assert "'Good ' and 'good'" in said
        assert "missing value" in said
        assert "'n/a'" in said

    def test_layers_and_poolings_are_those_asked_for(self, tiny: TinyModels):
        poolings = {"bert": ("cls", "max"), "llama": "last"}
        model = build(tiny, "bert", "llama", layers=[1, -1], pooling=poolings).fit(TEXTS, LABELS)
        assert {str(score.block) for score in model.profile_} == {
            *("bert:1:cls", "bert:3:cls", "bert:1:max", "bert:3:max"),
            *("llama:1:last", "llama:3:last"),
        }

    def test_a_prompt_reaches_its_encoder(self, tiny: TinyModels):
        model = build(tiny, "bert", "llama", prompts={"llama": "the {text} is"})
        model.fit(TEXTS, LABELS)
        assert [encoder.prompt for encoder in model.encoders_] == [None, "the {text} is"]

    def test_predicting_keeps_no_embeddings(self, tiny: TinyModels):
        model = build(tiny, "bert").fit(TEXTS, LABELS)
        before = EmbeddingStore().sections()[0].shards
        model.predict(TEST_TEXTS)
        assert EmbeddingStore().sections()[0].shards == before

    def test_predicting_runs_only_what_is_needed(self, tiny: TinyModels):
        """Of two encoders only the chosen one runs, and no block above the chosen layer."""
        model = build(tiny, "bert", "llama", selection="best", layers=[1]).fit(TEXTS, LABELS)
        (chosen,) = model.model_.blocks
        again = pickle.loads(pickle.dumps(model))
        again.predict(TEST_TEXTS[:5])
        loaded = [encoder.name for encoder in again.encoders_ if encoder.is_loaded]
        assert loaded == [chosen.encoder]


class TestClassWeight:
    def test_balanced_helps_a_rare_class(self, tiny: TinyModels):
        rare = [row for row, label in enumerate(LABELS) if label == "good"][6:]
        kept = [row for row in range(160) if row not in set(rare)]
        texts, labels = [TEXTS[row] for row in kept], [LABELS[row] for row in kept]
        found = {}
        for weight in (None, "balanced", {"good": 20.0}, {"good": 0.01}):
            model = build(tiny, "bert", layers=[0], class_weight=weight).fit(texts, labels)
            found[str(weight)] = int((model.predict(TEST_TEXTS) == "good").sum())
        assert found["balanced"] > found["None"]
        assert found["{'good': 20.0}"] > found["None"] >= found["{'good': 0.01}"]

    def test_weights_may_name_labels_of_any_kind(self, tiny: TinyModels):
        y = [label == "good" for label in LABELS]
        model = build(tiny, "bert", class_weight={True: 5.0}).fit(TEXTS, y)
        assert model.predict(TEST_TEXTS).dtype == bool

    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            ("balance", "'balance': give None, 'balanced' or a mapping"),
            ({"other": 1.0}, "names 'other', which is not a label"),
        ],
    )
    def test_unusable_weights_are_refused(self, tiny: TinyModels, weight: Any, message: str):
        with pytest.raises(ConfigError, match=message):
            build(tiny, "bert", class_weight=weight).fit(TEXTS, LABELS)


class TestScikitLearn:
    def test_clone_and_parameters(self, tiny: TinyModels):
        model = build(tiny, "bert", max_blocks=3, store=None)
        copy = clone(model)
        assert repr(copy.get_params()) == repr(model.get_params())
        names = set(inspect.signature(LayerFusionClassifier.__init__).parameters) - {"self"}
        assert set(model.get_params()) == names
        assert vars(copy) == copy.get_params()
        copy.set_params(max_blocks=1, head="logistic")
        assert (copy.max_blocks, copy.head, model.max_blocks) == (1, "logistic", 3)
        with pytest.raises(ValueError, match="Invalid parameter 'heads'"):
            copy.set_params(heads="ridge")

    def test_a_clone_of_a_fitted_one_is_not_fitted(self, fitted: LayerFusionClassifier):
        copy = clone(fitted)
        with pytest.raises(NotFittedError):
            copy.predict(["good"])

    def test_encoder_objects_may_be_given_and_cloned(self, tiny: TinyModels):
        encoder = FrozenEncoder.from_pretrained(tiny("bert"), device="cpu", dtype="float32")
        model = LayerFusionClassifier([encoder], cv=3).fit(TEXTS, LABELS)
        assert model.encoders_ == (encoder,)
        copy = clone(model)
        assert not copy.encoders[0].is_loaded  # a copy of an encoder has no weights
        np.testing.assert_array_equal(
            copy.fit(TEXTS, LABELS).predict_proba(TEST_TEXTS), model.predict_proba(TEST_TEXTS)
        )

    def test_random_state_may_be_an_instance(self, tiny: TinyModels):
        one, other, seeded = (
            build(tiny, "bert", random_state=state).fit(TEXTS, LABELS)
            for state in (np.random.RandomState(3), np.random.RandomState(3), np.int64(3))
        )
        assert one.cv_ == other.cv_
        for (rows, _), (others, _) in zip(
            one.fit_record_.search.folds, other.fit_record_.search.folds, strict=True
        ):
            np.testing.assert_array_equal(rows, others)
        assert seeded.fit_record_.seed == 3

    def test_n_jobs_changes_no_value(self, tiny: TinyModels):
        one, two = (build(tiny, "bert", n_jobs=n).fit(TEXTS, LABELS) for n in (1, 2))
        np.testing.assert_array_equal(one.predict_proba(TEST_TEXTS), two.predict_proba(TEST_TEXTS))
        assert one.cv_ == two.cv_

    def test_sample_weight(self, tiny: TinyModels):
        """Equal weights are as none; heavier rows draw predictions to their class."""
        weights = np.where(np.array(LABELS) == "good", 5.0, 1.0)
        plain, equal, heavy = (
            build(tiny, "bert", layers=[0], head="ridge").fit(TEXTS, LABELS, sample_weight=given)
            for given in (None, np.full(160, 2.0), weights)
        )
        others = sentences(100)
        np.testing.assert_allclose(
            equal.predict_proba(others), plain.predict_proba(others), atol=1e-4
        )
        assert heavy.predict_proba(others)[:, 1].mean() > plain.predict_proba(others)[:, 1].mean()

    @pytest.mark.parametrize("weight", [[1.0], -1.0, float("nan"), 0.0])
    def test_weights_that_cannot_be_used(self, tiny: TinyModels, weight: Any):
        given = weight if isinstance(weight, list) else [weight, *[1.0 if weight else 0.0] * 159]
        with pytest.raises(DataError, match="sample_weight"):
            build(tiny, "bert").fit(TEXTS, LABELS, sample_weight=given)

    def test_decision_function(self, fitted: LayerFusionClassifier):
        scores = fitted.decision_function(TEST_TEXTS)
        assert scores.shape == (100,)
        np.testing.assert_array_equal(fitted.classes_[(scores > 0).astype(int)],
                                      fitted.predict(TEST_TEXTS))  # fmt: skip

    def test_verbose_prints_to_standard_error(
        self, tiny: TinyModels, capsys: pytest.CaptureFixture[str]
    ):
        build(tiny, "bert", verbose=1).fit(TEXTS, LABELS)
        printed = capsys.readouterr()
        assert "[layerfuse]" in printed.err
        assert not printed.out
        build(tiny, "bert").fit(TEXTS, LABELS)
        assert not capsys.readouterr().err

    def test_extracting_fits_nothing(self, tiny: TinyModels):
        model = build(tiny, "bert")
        assert len(model.extract(TEST_TEXTS)) == 4
        with pytest.raises(NotFittedError):
            check_is_fitted(model)

    def test_rows_that_are_left_out_are_warned_about(self, tiny: TinyModels):
        whole, own = TEXTS[:40], LABELS[:40]
        texts = [" ".join(words) for text in whole for words in (text.split(), text.split()[1:])]
        labels = [label for label in own for _ in range(2)]
        texts, labels = texts + [text + " end" for text in texts], labels * 2
        with pytest.warns(LayerfuseWarning, match="of 160 training texts"):
            model = build(tiny, "bert").fit(texts, labels)
        assert model.n_rows_ < 160 == build(tiny, fragments="keep").fit(texts, labels).n_rows_

    def test_in_a_pipeline(self, tiny: TinyModels):
        shout = FunctionTransformer(lambda texts: [text.upper() for text in texts])
        pipe = make_pipeline(shout, build(tiny, "bert"))
        assert isinstance(pipe, Pipeline)
        assert pipe.fit(TEXTS, LABELS).score(TEST_TEXTS, TEST_LABELS) > 0.9
        assert pipe.classes_.tolist() == ["bad", "good"]

    def test_in_a_search(self, tiny: TinyModels):
        """Parameters that change no embedding find them all in the store."""
        grid = {"max_blocks": np.arange(1, 3), "head": ["ridge", "logistic"]}
        model = build(tiny, "bert", selection="greedy")
        search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
        assert len(search.cv_results_["params"]) == 4
        assert search.best_score_ > 0.85
        assert search.score(TEST_TEXTS, TEST_LABELS) > 0.9

    def test_in_cross_validation(self, tiny: TinyModels):
        scores = cross_val_score(build(tiny, "bert"), TEXTS, LABELS, cv=3, error_score="raise")
        assert scores.min() > 0.8

    def test_pickles_have_no_weights_and_predict(self, fitted: LayerFusionClassifier):
        data = pickle.dumps(fitted)
        weights = sum(
            (encoder.path / "model.safetensors").stat().st_size for encoder in fitted.encoders_
        )
        assert len(data) < 40_000 < weights
        again = pickle.loads(data)
        assert not any(encoder.is_loaded for encoder in again.encoders_)
        np.testing.assert_array_equal(
            again.predict_proba(TEST_TEXTS), fitted.predict_proba(TEST_TEXTS)
        )
        assert again.cv_ == fitted.cv_
        with pytest.raises(NotAvailableError, match="Call fit"):
            _ = again.verdict_

    def test_tags_say_that_it_reads_text(self, tiny: TinyModels):
        tags = build(tiny).__sklearn_tags__()
        assert (tags.input_tags.string, tags.input_tags.one_d_array) == (True, True)
        assert not tags.input_tags.two_d_array
        assert tags.estimator_type == "classifier"

    def test_only_a_fitted_one_predicts(self, tiny: TinyModels):
        for method in ("predict", "predict_proba"):
            with pytest.raises(NotFittedError):
                getattr(build(tiny), method)(["good"])
        with pytest.raises(NotFittedError):
            build(tiny).save("nowhere")


class TestScore:
    """Of labels that scikit-learn's accuracy does not take."""

    @pytest.mark.parametrize(
        "kinds", [(1.5, 4.5), (("a", 1), ("b", 2)), (b"a", b"b"), (1, "b"), ("a", "b")], ids=str
    )
    def test_any_kind_is_scored(self, tiny: TinyModels, kinds: tuple[Any, Any]):
        texts, y = planted(40)
        labels = [kinds[own == y[0]] for own in y]
        model = build(tiny, "bert", cv=2).fit(texts, labels)
        right = [a == b for a, b in zip(model.predict(texts).tolist(), labels, strict=True)]
        assert model.score(texts, labels) == pytest.approx(np.mean(right))
        weights = np.arange(40) % 3
        assert model.score(texts, labels, weights) == pytest.approx(
            np.average(right, weights=weights)
        )
        wrong = [kinds[own != y[0]] for own in y]
        assert model.score(texts, wrong) == pytest.approx(1 - np.mean(right))

    def test_what_was_not_learned_is_never_right(self, fitted: LayerFusionClassifier):
        texts = ["good film", "bad film"]
        assert fitted.score(texts, ["never seen", *fitted.predict(texts[1:])]) == 0.5
        with pytest.raises(DataError, match="2 texts but 1 labels"):
            fitted.score(texts, ["a"])
        with pytest.raises(DataError, match="cannot be compared with those of training"):
            fitted.score(texts, [["a"], ["b"]])
        with pytest.raises(DataError, match="Each sample_weight is zero"):
            fitted.score(texts, ["a", "b"], [0, 0])


class TestSample:
    def test_selection_sees_only_the_sample_and_the_head_all_rows(self, tiny: TinyModels):
        notes = Notes()
        with reporting_to(notes):
            model = build(tiny, "bert", sample_size=60, store=None).fit(TEXTS, LABELS)
        record = model.fit_record_
        assert record.proba.shape == (60, 2)
        assert record.sample.targets.counts.tolist() == [30, 30]
        assert model.cv_.n == 60
        assert notes.about("60 of 160 rows")
        # Labels of rows outside the sample play no part in scores and selection ...
        rows = set(record.training.sample.tolist())
        flipped = {"good": "bad", "bad": "good"}
        labels = [label if row in rows else flipped[label] for row, label in enumerate(LABELS)]
        part = build(tiny, "bert", store=None).fit(
            [TEXTS[row] for row in sorted(rows)], [LABELS[row] for row in sorted(rows)]
        )
        assert part.selection_ == model.selection_
        # ... but the head is trained on all rows.
        assert part.plan_ == model.plan_
        one, two = (found.model_.model.head.arrays()["coef"] for found in (model, part))
        assert np.abs(one - two).max() > 0.01
        assert labels != LABELS

    def test_other_rows_are_read_only_at_the_selected_blocks(
        self, tiny: TinyModels, tmp_path: Path
    ):
        store = EmbeddingStore(tmp_path)
        model = build(tiny, "bert", "llama", sample_size=60, store=store).fit(TEXTS, LABELS)
        assert model.n_rows_ == 160
        for encoder in model.encoders_:
            section = store.section(encoder.name, encoder.identity)
            own = {block.layer for block in model.plan_.blocks if block.encoder == encoder.name}
            for layer in range(encoder.n_layers + 1):
                lacking = section.missing(text_hashes(sorted(set(TEXTS))), [(layer, "mean")])
                assert sum(len(rows) for rows, _ in lacking) == (0 if layer in own else 100)


class TestNestedResampling:
    def test_it_covers_all_rows(self, fitted: LayerFusionClassifier):
        record = fitted.fit_record_
        assert record.sample.targets.labels.tolist() == LABELS
        np.testing.assert_array_equal(record.sample_rows, np.arange(160))
        assert record.proba.shape == (160, 2)
        np.testing.assert_allclose(record.proba.sum(axis=1), 1)
        accuracy = record.sample.targets.correct(record.proba.argmax(axis=1)).mean()
        assert fitted.cv_.accuracy.value == pytest.approx(accuracy)

    def test_groups_are_never_on_both_sides_of_a_fold(self, tiny: TinyModels):
        groups = [f"author {row % 7}" for row in range(160)]
        model = build(tiny, "bert").fit(TEXTS, LABELS, groups=groups)
        for rows, held in model.fit_record_.search.folds:
            assert not {groups[row] for row in rows} & {groups[row] for row in held}

    def test_a_splitter_of_scikit_learn(self, tiny: TinyModels):
        model = build(tiny, "bert", cv=KFold(4, shuffle=True, random_state=3)).fit(TEXTS, LABELS)
        expected = KFold(4, shuffle=True, random_state=3).split(TEXTS)
        for (rows, held), (own_rows, own_held) in zip(
            expected, model.fit_record_.search.folds, strict=True
        ):
            np.testing.assert_array_equal(rows, own_rows)
            np.testing.assert_array_equal(held, own_held)

    def test_out_of_fold_never_saw_the_label(self, tiny: TinyModels):
        """Labels without any sense: a number that had seen them would be far above chance."""
        texts, y = sentences(120), np.random.default_rng(0).permutation([0, 1] * 60)
        model = build(tiny, "bert", "llama", pooling=("mean", "max", "last")).fit(texts, y)
        assert model.score(texts, y) > 0.6
        assert model.cv_.accuracy.value < 0.62

    def test_calibration_is_the_one_asked_for(self, tiny: TinyModels):
        plain = build(tiny, "bert", calibration=None).fit(TEXTS, LABELS)
        mended = build(tiny, "bert").fit(TEXTS, LABELS)
        assert plain.model_.calibrator.temperature == 1.0
        assert mended.model_.calibrator.temperature != 1.0
        assert mended.cv_.log_loss.value < plain.cv_.log_loss.value
        np.testing.assert_array_equal(mended.predict(TEST_TEXTS), plain.predict(TEST_TEXTS))


class TestBaselines:
    NAMES = (
        "majority",
        "tfidf",
        "last_layer",
        "last_four",
        "last_layer",
        "last_four",
        "last_matched",
        "best_block",
    )

    def names(self, fitted: LayerFusionClassifier) -> tuple[str, ...]:
        steps = range(1, len(fitted.plan_.blocks))
        return (*self.NAMES, *(f"first_{count}" for count in steps))

    def test_out_of_fold(self, fitted: LayerFusionClassifier):
        found = fitted.fit_record_.run_baselines()
        assert tuple(one.name for one in found) == self.names(fitted)
        y = fitted.fit_record_.sample.targets.codes
        accuracy = {one.name: (one.out_of_fold == y).mean() for one in found}
        assert all(len(one.out_of_fold) == 160 and one.predicted is None for one in found)
        assert accuracy["majority"] == 0.5
        assert accuracy["tfidf"] > 0.9  # single words give the labels away
        blocks = {(one.name, one.encoder): one.plan.blocks for one in found if one.plan}
        assert {one.name for one in found if one.plan is None} == {"majority", "tfidf"}
        for encoder in ("bert", "llama"):
            assert [block.layer for block in blocks["last_layer", encoder]] == [3]
            assert [block.layer for block in blocks["last_four", encoder]] == [0, 1, 2, 3]
        (matched,) = (one.plan for one in found if one.name == "last_matched")
        assert len({(block.encoder, block.pooling) for block in matched.blocks}) == 1
        top = range(4 - len(fitted.plan_.blocks), 4)
        assert [block.layer for block in matched.blocks] == [layer for layer in top if layer >= 0]
        best = fitted.profile_.best.block
        assert blocks["best_block", best.encoder] == (best,)
        for count in range(1, len(fitted.plan_.blocks)):
            (step,) = (one.plan for one in found if one.name == f"first_{count}")
            assert step.blocks == fitted.plan_.blocks[:count]

    def test_on_test_texts(self, fitted: LayerFusionClassifier):
        found = fitted.fit_record_.run_baselines(TEST_TEXTS, fitted.extract(TEST_TEXTS))
        assert tuple(one.name for one in found) == self.names(fitted)
        y = np.array(TEST_LABELS) == "good"
        assert all((one.predicted == y).mean() > 0.75 for one in found[1:])

    def test_test_rows_change_nothing(self, tiny: TinyModels):
        model = build(tiny, "bert", pooling=("mean", "last")).fit(TEXTS, LABELS)
        before = pickle.dumps([model.model_, model.selection_, model.profile_, model.cv_])
        proba = model.predict_proba(TEST_TEXTS)
        for texts in (TEST_TEXTS, ["w1 w2"] * 5):
            model.fit_record_.run_baselines(texts, model.extract(texts))
        model.fit_record_.run_baselines()
        after = pickle.dumps([model.model_, model.selection_, model.profile_, model.cv_])
        assert after == before
        np.testing.assert_array_equal(model.predict_proba(TEST_TEXTS), proba)

    def test_test_labels_are_never_asked_for(self):
        """Nothing that fits, chooses or predicts takes labels beside those of ``fit``."""
        functions = [getattr(LayerFusionClassifier, name) for name in ("predict", "extract")]
        for function in (*functions, FitRecord.run_baselines):
            parameters = inspect.signature(function).parameters
            assert not {"y", "y_test", "labels"} & set(parameters)

    def test_texts_without_a_word(self, tiny: TinyModels):
        texts = ["", " "] * 12
        model = build(tiny, "bert").fit(texts, ["a", "b", "a"] * 8)
        (tfidf,) = (one for one in model.fit_record_.run_baselines() if one.name == "tfidf")
        assert set(tfidf.out_of_fold) == {0}


class TestRefusals:
    @pytest.mark.parametrize(
        ("texts", "labels", "message"),
        [
            (TEXTS, LABELS[1:], "There are 160 texts but 159 labels"),
            (TEXTS, ["a"] * 160, "All 160 rows have the same label 'a'"),
            (TEXTS, ["a"] * 159 + ["b"], r"two classes need two rows .* 1 of 2 have only one: 'b'"),
            ([], [], "There are no texts"),
            ("good", ["a"], "Got one string"),
            ([None, *TEXTS[1:]], LABELS, "Text number 0 is None"),
            ([["good"]] * 160, LABELS, r"Text number 0 is \['good'\] \(list\)"),
        ],
    )
    def test_unusable_rows(self, tiny: TinyModels, texts: Any, labels: Any, message: str):
        with pytest.raises(DataError, match=message):
            build(tiny).fit(texts, labels)

    @pytest.mark.parametrize(
        "y",
        [
            pytest.param([float("nan"), 1.0], id="NaN"),
            pytest.param(["a", None], id="None"),
            pytest.param(["a", float("nan")], id="str and NaN"),
            pytest.param([1, True], id="equal but of two kinds"),
        ],
    )
    def test_unusable_labels(self, tiny: TinyModels, y: list[Any]):
        with pytest.raises(DataError, match="label"):
            build(tiny).fit(TEXTS[:24], y * 12)

    def test_no_labels(self, tiny: TinyModels):
        with pytest.raises(DataError, match="label"):
            build(tiny).fit(TEXTS, None)

    def test_negative_weights(self, tiny: TinyModels):
        with pytest.raises(ConfigError, match="weight"):
            build(tiny, class_weight={"good": -1.0}).fit(TEXTS, LABELS)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"fusion": "meen"},
                "Unknown fusion 'meen'. Choose from auto, concat, .*Did you mean 'mean'",
            ),
            ({"selection": "bset"}, "'bset'.*Did you mean 'best'"),
            ({"max_blocks": 0}, "max_blocks=0 .* at least 1"),
            ({"max_blocks": "2"}, "max_blocks='2'"),
            ({"sample_size": 1}, "sample_size=1"),
            ({"n_jobs": 0}, "n_jobs=0"),
            ({"fusion": ["concat"]}, r"Unknown fusion \['concat'\]"),
            ({"verbose": "x"}, "verbose='x'"),
            ({"random_state": -1}, "random_state=-1"),
            ({"fragments": "drpo"}, "'drpo'.*Did you mean 'drop'"),
            ({"head": "ridgee"}, "'ridgee'.*Did you mean 'ridge'"),
            ({"calibration": "sigmoid"}, "'sigmoid'"),
            ({"cv": 1}, "cv=1 .* at least 2"),
            ({"encoders": []}, "No encoder was given"),
        ],
    )
    def test_unusable_parameters(self, tiny: TinyModels, options: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            build(tiny).set_params(**options).fit(TEXTS, LABELS)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layers": [9]}, "bert has no layer 9"),
            ({"pooling": "median"}, "Unknown pooling 'median'"),
            ({"prompts": {"bert": "no slot"}}, "exactly once"),
            ({"device": "tpu"}, "Unknown device 'tpu'"),
        ],
    )
    def test_unusable_encoder_options(
        self, tiny: TinyModels, options: dict[str, Any], message: str
    ):
        with pytest.raises(ConfigError, match=message):
            build(tiny, **options).fit(TEXTS, LABELS)

    def test_encoders_need_names_of_their_own(self, tiny: TinyModels):
        model = build(tiny, "bert")
        with pytest.raises(ConfigError, match=r"Two encoders are called 'bert'.*other=PATH"):
            model.set_params(encoders=[tiny("bert"), tiny("bert", seed=1)]).fit(TEXTS, LABELS)
        twice = model.set_params(encoders=[tiny("bert"), f"other={tiny('bert', seed=1)}"])
        assert {block.encoder for block in twice.extract(["good"])} == {"bert", "other"}

    def test_unknown_encoders(self):
        with pytest.raises(NotFoundError, match="Unknown encoder 'nothing'"):
            LayerFusionClassifier(["nothing"]).fit(TEXTS, LABELS)

    def test_a_refused_fit_is_told_before_the_models_are_read(self, tiny: TinyModels):
        notes = Notes()
        with reporting_to(notes):
            with pytest.raises(LayerfuseError):
                build(tiny, head="none").fit(TEXTS, LABELS)
            with pytest.raises(LayerfuseError):
                build(tiny).fit(TEXTS, ["a"] * 160)
        assert notes.lines == []

    def test_gathered_blocks_are_those_of_all_encoders(self, fitted: LayerFusionClassifier):
        found = fitted.extract(["good", "bad"])
        assert len(found) == 16
        assert found[BlockRef("llama", 3, "last")].shape == (2, 32)
        with pytest.raises(KeyError):
            _ = found[BlockRef("other", 0, "mean")]


class RowsAsTexts(LayerFusionClassifier):
    """Numbers as texts, a word for each column and size, so that scikit-learn's checks can run.

    scikit-learn has no data for estimators of texts and would skip all of its checks.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RowsAsTexts:
        super().fit(_as_texts(validate_data(self, X, dtype=float)), y, sample_weight)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self)
        return super().predict_proba(_as_texts(validate_data(self, X, reset=False, dtype=float)))

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=float)
        # In float32 the last digits of an embedding depend on the texts of its batch.
        return np.round(super().decision_function(_as_texts(X)), 5)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.input_tags.string = False
        return tags


def _as_texts(X: npt.NDArray[np.float64]) -> list[str]:
    words = VOCABULARY[4:]
    sizes = np.clip(np.round(2 * X), -4, 4).astype(int) + 4
    return [
        " ".join(words[(9 * column + size) % 60] for column, size in enumerate(row))
        for row in sizes
    ]


NOT_FOR_US = {
    "check_classifiers_regression_target": "numbers such as star ratings are labels; a column of "
    "numbers that are all different is refused because each class has only one row",
    "check_supervised_y_2d": "a table of labels is a mistake more often than it is meant",
    "check_fit2d_1sample": "one row is refused as one class, in other words than the check's",
    "check_sample_weight_equivalence_on_dense_data": "weights go to heads and their penalties; "
    "blocks are scored and selected by rows",
    "check_requires_y_none": "y=None is refused in other words; see test_no_labels",
}
_CHECKED = RowsAsTexts(["made when a test runs"], cv=2, max_blocks=2, store=None)


@parametrize_with_checks([_CHECKED], expected_failed_checks=lambda _: NOT_FOR_US)
def test_scikit_learns_checks(tiny: TinyModels, estimator: RowsAsTexts, check: Any) -> None:
    (encoder,) = build(tiny).encoders
    check(clone(estimator).set_params(encoders=[encoder]))


@pytest.mark.parametrize(
    "given",
    [{"store": 3}, {"encoders": 3}, {"class_weight": 3}, {"cv": "5"}, {"cv": True}, {"cv": 2.0}],
    ids=str,
)
def test_parameters_of_another_type_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        LayerFusionClassifier(**{"encoders": ["nothing"], **given}).fit(["a", "b"] * 2, [0, 1] * 2)


def test_blocks_by_their_names(tiny: TinyModels) -> None:
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), name="tiny")
    blocks = extract(["a", "b"], encoder)
    np.testing.assert_array_equal(blocks["tiny:1:mean"], blocks[BlockRef("tiny", 1, "mean")])
    with pytest.raises(KeyError, match="tiny:0:mean"):
        blocks["tiny:9:mean"]
    for other in ("tiny", [encoder]):
        with pytest.raises(ConfigError, match="FrozenEncoder"):
            extract(["a"], other)
