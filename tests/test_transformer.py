"""Fused layers as features of a scikit-learn pipeline, beside columns that are not text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from families import TinyModels
from helpers import build, planted
from layerfuse import LayerFusionClassifier, LayerFusionTransformer
from layerfuse.errors import DataError

N = 200


def transformer(tiny: TinyModels, **options: object) -> LayerFusionTransformer:
    options = {
        "fusion": "concat",
        "head": "ridge",
        "max_blocks": 2,
        "selection": "greedy",
        "store": None,
    } | options
    return LayerFusionTransformer(build(tiny, "bert", **options))


@pytest.fixture
def frame() -> pd.DataFrame:
    """Texts tell one half of the label, a channel and an amount the other; two columns nothing."""
    rng = np.random.default_rng(0)
    texts, words = planted(N)
    late = rng.random(N) < 0.5
    return pd.DataFrame(
        {
            "text": texts,
            "word": words,
            "label": [
                f"{word} {'late' if own else 'soon'}" for word, own in zip(words, late, strict=True)
            ],
            "channel": np.where(late ^ (rng.random(N) < 0.1), "phone", "web"),
            "amount": np.where(late, 3.0, 0.0) + rng.normal(size=N),
            "noise": rng.normal(size=N),
            "kind": rng.choice(list("abcd"), N),
        }
    )


def accuracy(frame: pd.DataFrame, label: str, *columns: object) -> npt.NDArray[np.bool_]:
    """Whether each row is right, out of fold."""
    model: Pipeline = make_pipeline(
        make_column_transformer(*columns), LogisticRegression(max_iter=2000)
    )
    return np.asarray(cross_val_predict(model, frame, frame[label], cv=3) == frame[label])


@pytest.mark.slow
def test_text_and_columns_are_better_than_either(tiny: TinyModels, frame: pd.DataFrame):
    text = (transformer(tiny), "text")
    others = [(OneHotEncoder(handle_unknown="ignore"), ["channel"]), (StandardScaler(), ["amount"])]
    alone = max(accuracy(frame, "label", text).mean(), accuracy(frame, "label", *others).mean())
    assert alone < 0.7
    assert accuracy(frame, "label", text, *others).mean() > 0.85


@pytest.mark.slow
def test_columns_of_noise_cost_no_more_than_noise(tiny: TinyModels, frame: pd.DataFrame):
    text = (transformer(tiny), "text")
    noise = [(OneHotEncoder(handle_unknown="ignore"), ["kind"]), (StandardScaler(), ["noise"])]
    before, after = accuracy(frame, "word", text), accuracy(frame, "word", text, *noise)
    difference = after.astype(float) - before
    assert difference.mean() > -2 * difference.std() / np.sqrt(N) - 1e-9


def test_features_are_those_that_the_head_reads(tiny: TinyModels, frame: pd.DataFrame):
    made = transformer(tiny).fit(frame["text"], frame["word"])
    found = made.transform(frame["text"])
    names = made.get_feature_names_out()
    assert found.shape == (N, len(names))
    assert len(set(names)) == len(names)
    blocks = made.classifier_.model_.blocks
    assert {name.rpartition(":")[0] for name in names} == set(map(str, blocks))
    model = made.classifier_.model_
    np.testing.assert_array_equal(
        model.proba_of(found).argmax(1), made.classifier_.predict_proba(frame["text"]).argmax(1)
    )


def test_other_fusions_have_names_too(tiny: TinyModels, frame: pd.DataFrame):
    made = transformer(tiny, fusion="tensor+residual").fit(frame["text"], frame["word"])
    assert len(made.get_feature_names_out()) == made.transform(["a film"]).shape[1]


def test_it_is_an_estimator(tiny: TinyModels, frame: pd.DataFrame):
    own = transformer(tiny)
    again = clone(own).set_params(classifier__max_blocks=1)
    assert own.get_params()["classifier__max_blocks"] == 2
    with pytest.raises(NotFittedError):
        again.transform(["a film"])
    columns = make_column_transformer((again, "text"), verbose_feature_names_out=False)
    table = columns.set_output(transform="pandas").fit_transform(frame, frame["word"])
    assert list(table.columns) == list(
        columns.named_transformers_["layerfusiontransformer"].get_feature_names_out()
    )
    assert not hasattr(again, "classifier_")
    with pytest.raises(DataError):
        again.fit(frame[["text"]], frame["word"])
    assert LayerFusionTransformer().get_params(deep=False) == {"classifier": None}
    assert isinstance(own.classifier, LayerFusionClassifier)
