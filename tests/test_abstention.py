"""Which texts go to a person: thresholds, sets, and what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import layerfuse
from commandline import rows, succeed, write_csv
from families import TinyModels
from helpers import build, planted
from layerfuse.calibration import Abstention, fit_abstention
from layerfuse.errors import ConfigError
from layerfuse.targets import LabelSpace, Targets

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float64]
SPACE = LabelSpace(np.array(["a", "b", "c"]))


def draw(n: int, seed: int, sharpness: float = 3.0) -> tuple[Floats, Targets]:
    """Calibrated probabilities of three classes, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    proba = SPACE.link(sharpness * rng.normal(size=(n, 3)))
    codes = (rng.random((n, 1)) > proba.cumsum(axis=1)).sum(axis=1)
    return proba, Targets(SPACE, np.minimum(codes, 2))


@pytest.mark.parametrize("target", [0.85, 0.95])
def test_the_target_is_met_in_nineteen_of_twenty_draws(target: float):
    proba, targets = draw(100_000, 0)
    met, kept = [], []
    for seed in range(1, 41):
        rule = fit_abstention(*draw(600, seed), target_accuracy=target)
        assert rule is not None
        own = rule.measure(proba, targets)
        met.append(own.accuracy is None or own.accuracy.value >= target)
        kept.append(1 - own.abstained.value)
    assert np.mean(met) >= 0.95
    right = targets.correct(targets.space.decide(proba))[np.argsort(-proba.max(axis=1))]
    possible = np.flatnonzero(np.cumsum(right) / np.arange(1, len(right) + 1) >= target)[-1]
    assert np.mean(kept) > 0.55 * possible / len(right)  # and not by keeping hardly any


def test_sets_hold_the_label_as_often_as_was_asked():
    proba, targets = draw(100_000, 0)
    for coverage in (0.8, 0.95):
        found = []
        for seed in range(1, 101):
            rule = fit_abstention(*draw(400, seed), coverage=coverage)
            assert rule is not None
            sets = rule.measure(proba, targets).sets
            assert sets is not None
            found.append(sets.coverage.value)
        assert np.mean(found) == pytest.approx(coverage, abs=0.005)


def test_without_a_request_nothing_is_chosen():
    assert fit_abstention(*draw(10, 0)) is None


def test_a_target_out_of_reach_sends_everything_to_a_person():
    proba, targets = draw(50, 0)
    rule = fit_abstention(proba, targets, target_accuracy=0.999)
    assert rule is not None
    assert rule.abstains(proba).all()
    own = rule.measure(proba, targets)
    assert (own.abstained.value, own.accuracy, own.sets) == (1.0, None, None)


def test_a_coverage_out_of_reach_gives_every_label():
    proba, targets = draw(5, 0)
    rule = fit_abstention(proba, targets, coverage=0.99)
    assert rule is not None
    assert rule.sets(proba).all()


def test_rows_that_are_right_are_all_kept():
    codes = np.arange(600) % 3
    proba = SPACE.link(9 * np.eye(3)[codes])  # ties everywhere
    rule = fit_abstention(proba, Targets(SPACE, codes), target_accuracy=0.99)
    assert rule is not None
    assert not rule.abstains(proba).any()


def test_a_text_is_decided_where_both_conditions_hold():
    proba = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.4, 0.3, 0.3], [0.75, 0.25, 0.0]])
    rule = Abstention(0.9, 0.8, 0.9, 0.35)
    assert rule.abstains(proba).tolist() == [False, True, True, True]
    assert Abstention(coverage=0.9, label_threshold=0.35).abstains(proba).tolist() == [
        *(False, True, False, False)
    ]
    assert Abstention(coverage=0.9, label_threshold=0.95).abstains(proba).all()  # empty sets


@pytest.mark.parametrize("value", [0, 1, 98, -0.5, "high"])
def test_shares_are_between_0_and_1(tiny: TinyModels, value: object):
    for name in ("target_accuracy", "coverage"):
        with pytest.raises(ConfigError, match=f"{name}=.*such as 0.95"):
            build(tiny, **{name: value}).fit(*planted(20))


class TestClassifier:
    def test_predict_and_bundle(self, tiny: TinyModels, tmp_path: Path):
        texts, labels = planted(120, 3)
        texts += [" ".join(word for word in text.split() if word[0] == "w") for text in texts[:60]]
        labels += labels[60:]  # of what tells nothing
        model = build(tiny, target_accuracy=0.8, coverage=0.9).fit(texts, labels)
        rule = model.abstention_
        assert rule is not None
        proba = model.predict_proba(texts)
        assert rule.threshold > 0
        unsure = rule.abstains(proba)
        assert 0 < unsure.sum() < len(texts)
        found = model.predict(texts, abstain="person")
        assert ((found == "person") == unsure).all()
        assert (found[~unsure] == model.predict(texts)[~unsure]).all()
        assert (model.predict_set(texts) == rule.sets(proba)).all()
        model.save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert again.abstention_ == rule
        assert (
            again.predict(texts, abstain=-1).tolist() == model.predict(texts, abstain=-1).tolist()
        )

    def test_a_label_cannot_stand_for_none(self, tiny: TinyModels):
        texts, labels = planted(40)
        model = build(tiny, "bert", cv=2, coverage=0.9).fit(texts, labels)
        with pytest.raises(ConfigError, match="is a label"):
            model.predict(texts, abstain=labels[0])

    def test_without_a_request(self, tiny: TinyModels):
        model = build(tiny).fit(*planted(30))
        assert model.abstention_ is None
        with pytest.raises(ConfigError, match="target_accuracy"):
            model.predict(["good"], abstain="person")
        with pytest.raises(ConfigError, match="coverage"):
            model.predict_set(["good"])


@pytest.mark.slow
def test_fit_says_how_many_go_to_a_person(tiny: TinyModels, tmp_path: Path):
    write_csv(tmp_path / "train.csv", rows(150))
    write_csv(tmp_path / "test.csv", rows(60, seed=1))
    files = [tmp_path / "train.csv", "--test", tmp_path / "test.csv", "--store", tmp_path / "store"]
    options = ["-e", tiny("bert"), "--cv", 2, "--head", "ridge", "--fusion", "concat"]
    shares = ["--target-accuracy", 0.8, "--coverage", 0.9, "--out", tmp_path / "run"]
    done = succeed("fit", *files, *options, *shares)
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    own = report["abstention"]
    assert own["rule"]["target_accuracy"] == 0.8
    assert own["test"]["n"] == 60
    assert own["cv"]["sets"]["coverage"]["value"] == pytest.approx(0.9, abs=0.02)
    share = f"{100 * own['test']['abstained']['value']:.0f} go to a person"
    assert share in done.out
    assert share in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
