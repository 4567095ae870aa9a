"""The saved classifier: what is loaded is what was saved, or it is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.model_selection import KFold

import layerfuse
from families import TinyModels, save_model
from helpers import build, planted
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier
from layerfuse.blocks import BlockRef
from layerfuse.bundle import Bundle, EncoderSpec, load_bundle, save_bundle
from layerfuse.encoders import devices
from layerfuse.encoders.devices import choose_dtype, has_int8
from layerfuse.errors import (
    ConfigError,
    FormatError,
    LayerfuseError,
    LayerfuseWarning,
    NotAvailableError,
    NotFoundError,
    StorageError,
    UnsupportedModelError,
)
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.files import read_json, read_tensors
from layerfuse.fusion import FUSIONS
from layerfuse.heads import HEADS
from layerfuse.model_selection import SearchSpace
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

TEXTS, LABELS = planted(80)
OTHERS, _ = planted(40, seed=1)
FILES = {"bundle.json", "tensors.safetensors", "README.md"}


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels) -> LayerFusionClassifier:
    """Blocks of two models; tests must not change it."""
    model = build(
        tiny, "bert", "llama", selection="last", prompts={"llama": "the {text} is"},
        max_length=40,
    )  # fmt: skip
    return model.fit(TEXTS, LABELS)


@pytest.fixture
def saved(fitted: LayerFusionClassifier, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    value["sha256"] = signed(value, folder)
    path.write_text(json.dumps(value), encoding="utf-8")


def signed(value: dict[str, Any], folder: Path) -> str:
    """The checksum that a bundle of these fields has."""
    fields = {name: own for name, own in value.items() if name != "sha256"}
    tensors = (folder / "tensors.safetensors").read_bytes()
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + tensors).hexdigest()


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tensors.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_same_predictions(one: LayerFusionClassifier, other: LayerFusionClassifier) -> None:
    np.testing.assert_array_equal(one.predict_proba(OTHERS), other.predict_proba(OTHERS))


class TestRoundTrip:
    @pytest.mark.slow
    @pytest.mark.parametrize("selection", ["last", "greedy"])
    def test_probabilities_are_exactly_equal(
        self, tiny: TinyModels, tmp_path: Path, selection: str
    ):
        model = build(
            tiny, "bert", "llama", pooling=("mean", "last"), selection=selection, max_blocks=3
        ).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        assert_same_predictions(layerfuse.load(tmp_path / "bundle", device="cpu"), model)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_dtype(self, tiny: TinyModels, tmp_path: Path, dtype: str):
        """float32 whatever this machine would choose; bfloat16 only where it is not emulated."""
        model = build(tiny, dtype=dtype).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        expected = dtype if dtype == "float32" else choose_dtype("auto", "cpu")
        assert [encoder.dtype for encoder in again.encoders_] == [expected]
        if expected == dtype:
            assert_same_predictions(again, model)
        else:
            assert (again.predict(OTHERS) == model.predict(OTHERS)).mean() > 0.9

    @pytest.mark.skipif(not has_int8("cpu"), reason="this CPU does not multiply 8 bits")
    def test_8_bits_where_there_are_some(
        self, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        model = build(tiny, dtype="int8").fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert again.encoders_[0].dtype == "int8"
        assert_same_predictions(again, model)
        monkeypatch.setattr(devices, "computes_int8", lambda: False)
        with pytest.warns(LayerfuseWarning, match="this machine cannot do"):
            elsewhere = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert elsewhere.encoders_[0].dtype == choose_dtype("auto", "cpu")
        assert (elsewhere.predict(OTHERS) == model.predict(OTHERS)).mean() > 0.9

    def test_what_is_loaded_is_what_was_saved(self, fitted: LayerFusionClassifier, saved: Path):
        again = layerfuse.load(saved, device="cpu")
        assert again.model_.blocks == fitted.model_.blocks
        assert again.model_.calibrator == fitted.model_.calibrator
        assert again.model_.model.head.penalty == fitted.model_.model.head.penalty
        assert again.model_.model.head.kind == "ridge"
        assert again.cv_ == fitted.cv_
        parts = [
            [model.model_.model.head, model.model_.model.fusion, *model.model_.axes]
            for model in (again, fitted)
        ]
        for one, other in zip(*parts, strict=True):
            found, expected = one.arrays(), other.arrays()
            assert set(found) == set(expected)
            for name, array in found.items():
                assert array.dtype == expected[name].dtype == np.float32
                np.testing.assert_array_equal(array, expected[name])
        assert [(e.name, e.prompt, e.max_length) for e in again.encoders_] == [
            ("bert", None, 40),
            ("llama", "the {text} is", 40),
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "labels",
        [
            pytest.param(["no", "yes"], id="str"),
            pytest.param([-1, 10**12], id="int"),
            pytest.param([2**70, 1], id="int above 64 bits"),
            pytest.param([False, True], id="bool"),
            pytest.param([0.1, 2.0], id="float"),
            pytest.param(["1", "nan"], id="str like a number"),
            pytest.param(["1", 1], id="str and int"),
            pytest.param([2.5, 1], id="float and int"),
            pytest.param(["", 'a "quoted",\nü 🚢'], id="strange str"),
        ],
    )
    def test_labels_come_back_as_their_kind(
        self, fitted: LayerFusionClassifier, tmp_path: Path, labels: list[Any]
    ):
        space = Targets.from_labels(labels).space
        spec = EncoderSpec.of(fitted.encoders_[0])
        specs = (spec, EncoderSpec.of(fitted.encoders_[1]))
        save_bundle(Bundle(fitted.model_, space, specs), tmp_path / "bundle")
        classes = layerfuse.load(tmp_path / "bundle", device="cpu").classes_
        assert classes.dtype == space.classes.dtype
        found = [(type(label), label) for label in classes.tolist()]
        assert found == [(type(label), label) for label in space.classes.tolist()]

    def test_only_encoders_in_use_are_kept_and_cut(self, tiny: TinyModels, tmp_path: Path):
        model = build(tiny, "bert", "llama", layers=[0, 1], selection="best")
        model.fit(TEXTS, LABELS).save(tmp_path / "bundle")
        (chosen,) = model.model_.blocks
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert [encoder.name for encoder in again.encoders_] == [chosen.encoder]
        assert again.encoders_[0].highest_layer == chosen.layer
        assert not again.encoders_[0].is_loaded
        again.predict(["good"])
        blocks = again.encoders_[0].architecture.blocks
        assert blocks is not None
        assert len(blocks) == chosen.layer + 1  # the block that marks where reading stops

    def test_a_loaded_one_can_be_saved_again(self, saved: Path, tmp_path: Path):
        again = layerfuse.load(saved, device="cpu")
        again.save(tmp_path / "copy")
        for name in ("bundle.json", "tensors.safetensors"):
            assert (saved / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()

    @pytest.mark.slow
    def test_a_run_folder_and_a_text_as_path(self, saved: Path):
        expected = layerfuse.load(saved, device="cpu")
        for place in (saved.parent, str(saved), str(saved.parent)):
            assert_same_predictions(layerfuse.load(place, device="cpu"), expected)

    @pytest.mark.slow
    def test_an_encoder_that_was_moved(self, tiny: TinyModels, tmp_path: Path):
        folder = shutil.copytree(tiny("bert"), tmp_path / "here")
        encoder = FrozenEncoder.from_pretrained(folder, name="bert", device="cpu", dtype="float32")
        model = LayerFusionClassifier(encoder, cv=2).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        folder.rename(tmp_path / "there")
        with pytest.raises(NotFoundError, match="here"):
            layerfuse.load(tmp_path / "bundle", device="cpu")
        places = {"bert": tmp_path / "there"}
        again = layerfuse.load(tmp_path / "bundle", device="cpu", encoders=places)
        assert_same_predictions(again, model)
        assert_same_predictions(again.fit(TEXTS, LABELS), model)


def same_parameter(one: object, other: object) -> bool:
    """Encoders by what they are; anything else by type and value."""
    if isinstance(one, (list, tuple)) and isinstance(other, type(one)):
        return len(one) == len(other) and all(map(same_parameter, one, other))
    if isinstance(one, FrozenEncoder) and isinstance(other, FrozenEncoder):
        return (one.name, one.identity, one.candidates, one.device) == (
            other.name,
            other.identity,
            other.candidates,
            other.device,
        )
    return type(one) is type(other) and one == other


def assert_same_parameters(one: LayerFusionClassifier, other: LayerFusionClassifier) -> None:
    found, expected = one.get_params(), other.get_params()
    assert list(found) == list(expected)
    assert not [name for name in found if not same_parameter(found[name], expected[name])]


class TestParameters:
    """``load(...).get_params()`` equals what was saved, and the loaded one can be fitted again."""

    @pytest.mark.slow
    def test_every_parameter(self, tiny: TinyModels, tmp_path: Path):
        model = build(
            tiny, "bert", "llama",
            layers=[1, -1], pooling={"bert": ("mean", "max")}, prompts={"bert": "a {text}"},
            selection="top_k", max_blocks=2, budget=Budget(dims=1000, ms_per_text=1e6),
            fusion="concat", head="logistic", class_weight="balanced", fragments="keep",
            calibration=None, cv=2, sample_size=60, store=None, n_jobs=1, random_state=None,
            verbose=0,
        )  # fmt: skip
        model.fit(TEXTS, LABELS).save(tmp_path / "bundle")
        assert_same_parameters(layerfuse.load(tmp_path / "bundle", device="cpu"), model)

    @pytest.mark.slow
    def test_defaults(self, tiny: TinyModels, tmp_path: Path):
        model = LayerFusionClassifier([f"bert={tiny('bert')}"]).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        assert_same_parameters(layerfuse.load(tmp_path / "bundle", device="cpu"), model)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("budget", {"dims": 64, "ms_per_text": 1e6}),
            ("budget", {"dims": np.int64(64), "blocks": None}),
            ("budget", Budget(dims=64)),
            ("class_weight", {"good": 2, "bad": 0.5}),
            ("store", None),
            ("store", "cache"),
            ("store", Path("cache")),
            ("random_state", None),
            ("random_state", 2**32 - 1),
            ("calibration", None),
        ],
    )
    def test_forms_of_a_parameter(
        self,
        fitted: LayerFusionClassifier,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        value: object,
    ):
        monkeypatch.setattr(fitted, name, value)
        fitted.save(tmp_path / "bundle")
        found = layerfuse.load(tmp_path / "bundle", device="cpu").get_params()[name]
        assert type(found) is type(value)
        assert found == value

    def test_forms_of_encoders(
        self,
        fitted: LayerFusionClassifier,
        tiny: TinyModels,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        folder, (bert, llama) = tiny("bert"), fitted.encoders
        prompted = FrozenEncoder.from_pretrained(
            folder, chat_prompt=None, layers=np.int64(1), batch_tokens=500, device="cpu"
        )
        for number, given in enumerate(
            ("minilm", folder, bert, ["minilm", folder, bert], (f"x={folder}", llama), [prompted])
        ):
            monkeypatch.setattr(fitted, "encoders", given)
            fitted.save(tmp_path / f"{number}")
            again = layerfuse.load(tmp_path / f"{number}", device="cpu")
            assert_same_parameters(again, fitted)

    def test_numpy_numbers_come_back_as_plain_ones(
        self, fitted: LayerFusionClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        names = ("max_blocks", "cv", "sample_size", "n_jobs", "random_state", "verbose")
        for name in names:
            monkeypatch.setattr(fitted, name, np.int64(3))
        fitted.save(tmp_path / "bundle")
        found = layerfuse.load(tmp_path / "bundle", device="cpu").get_params()
        assert [(type(found[name]), found[name]) for name in names] == [(int, 3)] * len(names)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("labels", "keys"),
        [
            ([False, True], [True]),
            ([0, 7], [np.int64(7), np.int64(0)]),
            (["a", "b"], [np.str_("b")]),
            ([1.5, 2.0], [2.0]),
        ],
        ids=["bool", "int", "str", "float"],
    )
    def test_class_weights_by_labels_of_any_kind(
        self, tiny: TinyModels, tmp_path: Path, labels: list[Any], keys: list[Any]
    ):
        y = [labels[label == "good"] for label in LABELS]
        model = build(tiny, class_weight=dict.fromkeys(keys, 3), layers=[0], cv=2).fit(TEXTS, y)
        model.save(tmp_path / "bundle")
        found = layerfuse.load(tmp_path / "bundle", device="cpu").class_weight
        assert found == model.class_weight
        assert {type(key) for key in found} == {type(labels[0])}

    @pytest.mark.slow
    def test_labels_that_no_file_can_hold_are_named(self, tiny: TinyModels, tmp_path: Path):
        y = ["\ud800" if label == "good" else label for label in LABELS]
        model = build(tiny, layers=[0], cv=2).fit(TEXTS, y)
        with pytest.raises(ConfigError, match=r"Labels of type '\\ud800' cannot be saved"):
            model.save(tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    @pytest.mark.slow
    def test_class_weights_follow_labels_that_are_renamed(self, tiny: TinyModels, tmp_path: Path):
        y = [(label,) for label in LABELS]
        model = build(tiny, class_weight={("good",): 3.0}, layers=[0], cv=2).fit(TEXTS, y)
        with pytest.raises(ConfigError, match="Labels of type tuple cannot be saved"):
            model.save(tmp_path / "bundle")
        model.save(tmp_path / "bundle", labels={("good",): "good", ("bad",): "bad"})
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert again.class_weight == {"good": 3.0}
        assert_same_predictions(again.fit(TEXTS, LABELS), model)

    def test_an_embedding_store_comes_back_as_its_folder(
        self, fitted: LayerFusionClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(fitted, "store", EmbeddingStore(tmp_path / "cache"))
        fitted.save(tmp_path / "bundle")
        assert layerfuse.load(tmp_path / "bundle", device="cpu").store == tmp_path / "cache"

    @pytest.mark.parametrize(
        ("name", "value", "instead"),
        [
            ("cv", KFold(4), 3),
            ("cv", [(np.arange(40), np.arange(40, 80))], 3),
            ("random_state", np.random.RandomState(0), None),
        ],
        ids=["splitter", "folds", "RandomState"],
    )
    def test_what_cannot_be_kept_is_warned_about(
        self,
        fitted: LayerFusionClassifier,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        value: object,
        instead: object,
    ):
        """Folds are saved as their number: three here, whatever was set after fit."""
        monkeypatch.setattr(fitted, name, value)
        with pytest.warns(LayerfuseWarning, match=f"{name} is .* saved as {name}={instead}"):
            fitted.save(tmp_path / "bundle")
        assert layerfuse.load(tmp_path / "bundle", device="cpu").get_params()[name] == instead

    @pytest.mark.slow
    def test_fitting_a_loaded_one_is_as_fitting_afresh(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        again = layerfuse.load(saved, device="cpu").fit(TEXTS, LABELS)
        assert_same_predictions(again, fitted)
        assert again.cv_ == fitted.cv_
        assert again.verdict_.gain == fitted.verdict_.gain
        # It was read at other layers too: encoders of the parameters are not cut.
        assert len(again.profile_) == len(fitted.profile_)

    @pytest.mark.slow
    def test_unused_encoders_that_are_gone(self, tiny: TinyModels, tmp_path: Path):
        """Predicting needs those in use only; fitting names the one that is missing."""
        gone = shutil.copytree(tiny("llama"), tmp_path / "gone")
        (bert,) = build(tiny, layers=[0]).encoders
        other = FrozenEncoder.from_pretrained(gone, name="other", layers=[3], device="cpu")
        model = LayerFusionClassifier([bert, other], selection="best", cv=2).fit(TEXTS, LABELS)
        assert model.model_.blocks == (BlockRef("bert", 0, "mean"),)
        model.save(tmp_path / "bundle")
        shutil.rmtree(gone)
        with pytest.warns(LayerfuseWarning, match="encoder other"):
            again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert_same_predictions(again, model)
        with pytest.raises(NotFoundError, match="gone"):
            again.fit(TEXTS, LABELS)
        again.set_params(encoders=again.encoders[:1]).fit(TEXTS, LABELS)

    def test_columns_of_the_table(self, fitted: LayerFusionClassifier, tmp_path: Path):
        fitted.save(tmp_path / "bundle", text_column="what was said", label_column="who")
        facts = load_bundle(tmp_path / "bundle").facts
        assert (facts.text_column, facts.label_column) == ("what was said", "who")
        written = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
        assert written["facts"]["text_column"] == "what was said"


@pytest.mark.slow
class TestEveryFusion:
    """Each with a head, from arrays: saved, loaded, used."""

    @pytest.mark.parametrize(
        ("fusion", "head"),
        [
            (fusion, head)
            for fusion, kind in FUSIONS.items()
            for head in (["ridge"] if kind.brings_head else HEADS)  # which is not used then
        ],
    )
    def test_round_trip(self, tmp_path: Path, fusion: str, head: str):
        rng = np.random.default_rng(0)
        y = np.arange(60) % 3
        blocks = [BlockRef("bert", layer, "mean") for layer in range(3)]
        embeddings = {
            block: (rng.normal(size=(60, 8 + block.layer)) + y[:, None]).astype(np.float32)
            for block in blocks
        }
        space = SearchSpace("top_k", CostBudget(Budget(blocks=3), {}), fusion, head)
        targets = Targets.from_labels(np.array(["a", "b", "c"])[y])
        sample = TrainingSample(embeddings, targets, probe_blocks(embeddings, targets), space)
        model = sample.fit(Plan(tuple(blocks), fusion, head), embeddings, targets)
        assert model.model.fusion.name == fusion
        kind = model.model.head.kind
        assert kind == ("linear" if FUSIONS[fusion].brings_head else head)
        spec = EncoderSpec(
            name="bert", source="bert", revision=None, fingerprints={}, prompt=None,
            chat_prompt=None, layers="all", pooling="mean", max_length=8, windows=None,
            overlap=0.0, max_windows=64, dtype="float32", batch_tokens=None,
        )  # fmt: skip
        save_bundle(Bundle(model, targets.space, (spec,)), tmp_path / "bundle")
        again = load_bundle(tmp_path / "bundle").model
        assert (again.model.fusion.name, again.model.head.kind) == (fusion, kind)
        assert again.model.head.penalty == model.model.head.penalty
        np.testing.assert_array_equal(again.logits(embeddings), model.logits(embeddings))
        change_json(tmp_path / "bundle", lambda value: value["blocks"].pop())
        with pytest.raises(FormatError):
            load_bundle(tmp_path / "bundle")

    @pytest.mark.parametrize(
        ("fusion", "head"),
        [("hadamard+residual", "ridge"), ("gated", "ridge"), ("voting", "ridge"),
         ("stacking", "logistic"), ("concat", "mlp"), ("cooccurrence", "kernel")],
    )  # fmt: skip
    def test_whole_classifiers(self, tiny: TinyModels, tmp_path: Path, fusion: str, head: str):
        model = build(tiny, fusion=fusion, head=head, max_blocks=2, cv=2)
        model.fit(TEXTS, LABELS).save(tmp_path / "bundle")
        assert_same_predictions(layerfuse.load(tmp_path / "bundle", device="cpu"), model)
        assert model.score(TEXTS, LABELS) > 0.8
        baselines = {baseline.name for baseline in model.fit_record_.run_baselines()}
        always = {"majority", "tfidf", "last_layer", "last_four", "last_matched"}
        assert always <= baselines <= always | {"best_block", "first_1"}


class TestTheFolder:
    def test_nothing_in_it_can_run(self, saved: Path):
        assert {path.name for path in saved.iterdir()} == FILES
        json.loads((saved / "bundle.json").read_text(encoding="utf-8"))
        load_file(saved / "tensors.safetensors")
        assert (saved / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name")

    def test_the_card_names_blocks_encoders_and_numbers(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        card = (saved / "README.md").read_text(encoding="utf-8")
        for block in fitted.model_.blocks:
            assert f"- `{block}`" in card
        assert "Classes: bad, good." in card
        accuracy = fitted.cv_.accuracy
        for value in (accuracy.value, accuracy.low, accuracy.high, fitted.cv_.macro_f1.value):
            assert f"{100 * value:.1f}%" in card
        for encoder in fitted.encoders_:
            assert f"- `{encoder.name}`: a local model" in card
            assert str(encoder.path) not in card

    def test_it_is_small(self, saved: Path):
        assert sum(path.stat().st_size for path in saved.iterdir()) < 20_000

    def test_an_existing_folder_is_replaced_only_when_told(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        (saved / "note.txt").write_text("mine")
        with pytest.raises(
            StorageError, match=r"exists already\. Choose another folder, or remove"
        ):
            fitted.save(saved)
        assert (saved / "note.txt").read_text() == "mine"
        with pytest.raises(StorageError, match=r"would be lost: note\.txt"):
            fitted.save(saved, overwrite=True)
        assert (saved / "note.txt").read_text() == "mine"
        (saved / "note.txt").unlink()
        fitted.save(saved, overwrite=True)
        assert {path.name for path in saved.iterdir()} == FILES
        assert [path.name for path in saved.parent.iterdir()] == ["bundle"]
        assert layerfuse.load(saved, device="cpu").classes_.tolist() == ["bad", "good"]

    @pytest.mark.skipif(sys.platform != "linux", reason="folders cannot be exchanged here")
    def test_while_it_is_replaced_there_is_always_one(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        """Looked at in every call that saving makes: a kill may come at each."""
        seen: set[bool] = set()
        sys.setprofile(lambda *_: seen.add((saved / "bundle.json").exists()))
        try:
            fitted.save(saved, overwrite=True)
        finally:
            sys.setprofile(None)
        assert seen == {True}

    @pytest.mark.parametrize("target", ["there", "absent"])
    def test_of_a_link_the_folder_that_it_points_to_is_replaced(
        self, fitted: LayerFusionClassifier, saved: Path, target: str
    ):
        link = saved.with_name("latest")
        link.symlink_to("bundle")
        (saved / "README.md").write_text("older")
        if target == "absent":
            shutil.rmtree(saved)
        fitted.save(link, overwrite=True)
        assert link.readlink() == Path("bundle")
        assert sorted(path.name for path in saved.parent.iterdir()) == ["bundle", "latest"]
        assert (saved / "README.md").read_text(encoding="utf-8") != "older"
        layerfuse.load(link, device="cpu")

    @pytest.mark.parametrize("n_times", [1, 3])
    def test_one_that_is_replaced_while_it_is_read_is_read_again(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch, n_times: int
    ):
        bundle = load_bundle(saved)
        newer = iter(range(n_times))

        def read_and_replace(path: Path, **named: Any) -> Any:
            value = read_json(path, **named)
            if (number := next(newer, None)) is not None:
                bundle.model.model.head.arrays()["coef"][:] = number  # other tensors
                facts = bundle.facts.model_copy(update={"text_column": f"text {number}"})
                save_bundle(replace(bundle, facts=facts), saved, overwrite=True)
            return value

        monkeypatch.setattr("layerfuse.bundle.read_json", read_and_replace)
        assert load_bundle(saved).facts.text_column == f"text {n_times - 1}"

    def test_one_that_is_gone_for_a_moment_is_read_again(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """So it is where folders cannot be exchanged."""
        bundle, away = load_bundle(saved), saved.with_name("away")
        saved.rename(away)

        def fail_and_return(path: Path, **named: Any) -> Any:
            try:
                return read_json(path, **named)
            except NotFoundError:
                away.rename(saved)
                raise

        monkeypatch.setattr("layerfuse.bundle.read_json", fail_and_return)
        assert load_bundle(saved).facts == bundle.facts

    def test_the_tensors_that_are_used_are_those_that_are_checked(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = saved / "tensors.safetensors"
        whole = path.read_bytes()

        def read_others(*arguments: Any) -> Any:
            change_tensors(saved, lambda tensors: tensors["head.coef"].fill(1))
            try:
                return read_tensors(*arguments)
            finally:
                path.write_bytes(whole)

        monkeypatch.setattr("layerfuse.bundle.read_tensors", read_others)
        with pytest.raises(FormatError, match="changed after it was saved"):
            load_bundle(saved)

    def test_folders_above_are_made(self, fitted: LayerFusionClassifier, tmp_path: Path):
        fitted.save(tmp_path / "a" / "b" / "bundle")
        assert {path.name for path in (tmp_path / "a" / "b" / "bundle").iterdir()} == FILES

    @pytest.mark.parametrize("limit", [0, 100, 1500])
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_full_disk_leaves_nothing_half_written(
        self, fitted: LayerFusionClassifier, tmp_path: Path, limit: int, overwrite: bool
    ):
        folder = tmp_path / "place" / "bundle"
        folder.parent.mkdir()
        before = {}
        if overwrite:
            fitted.save(folder)
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with full_disk(limit), pytest.raises(StorageError, match="The disk has no room to write"):
            fitted.save(folder, overwrite=overwrite)
        left = {path.name: path.read_bytes() for path in folder.parent.glob("**/*.*")}
        assert left == before
        assert [path.name for path in folder.parent.iterdir()] == (["bundle"] if overwrite else [])


class TestRefused:
    def test_no_bundle(self, saved: Path, tmp_path: Path):
        for place in (tmp_path / "nothing", tmp_path / "bundle" / "README.md"):
            with pytest.raises(LayerfuseError):
                layerfuse.load(place)
        (tmp_path / "empty").mkdir()
        with pytest.raises(NotFoundError, match=r"no bundle\.json in .*Is it a layerfuse-bundle"):
            layerfuse.load(tmp_path / "empty")

    def test_a_folder_of_runs_names_them(self, fitted: LayerFusionClassifier, tmp_path: Path):
        runs = tmp_path / "runs"
        for name in ("one", "two"):
            fitted.save(runs / name / "bundle")
        with pytest.raises(NotFoundError) as error:
            layerfuse.load(runs)
        assert f"Give one of them: {runs / 'one'}, {runs / 'two'}." in str(error.value)
        layerfuse.load(runs / "one")

    def test_a_file_is_missing(self, saved: Path):
        (saved / "tensors.safetensors").unlink()
        with pytest.raises(NotFoundError, match=r"There is no tensors\.safetensors"):
            layerfuse.load(saved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda t: t.update({"head.coef": t["head.coef"][:, :1].copy()}),
                r"tensor 'head.coef' is float32\[\d+, 1\], expected float32\[\d+, 2\].*changed",
            ),
            (
                lambda t: t.update({"axes.1.mean": t["axes.1.mean"].astype(np.float64)}),
                r"tensor 'axes.1.mean' is float64\[32\], expected float32\[32\]",
            ),
            (lambda t: t.pop("head.intercept"), r"these names differ: \['head.intercept'\]"),
            (lambda t: t.update(more=np.zeros(2)), r"these names differ: \['more'\]"),
        ],
        ids=["shape", "dtype", "missing", "more"],
    )
    def test_changed_tensors(
        self, saved: Path, change: Callable[[dict[str, Any]], object], message: str
    ):
        change_tensors(saved, change)
        with pytest.raises(FormatError, match=message):
            layerfuse.load(saved)

    @pytest.mark.parametrize("size", [0, 4, 300, -1])
    def test_a_file_that_was_cut(self, saved: Path, size: int):
        path = saved / "tensors.safetensors"
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)
        with pytest.raises(FormatError, match="is damaged and cannot be read"):
            layerfuse.load(saved)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1'])
    def test_invalid_json(self, saved: Path, content: bytes):
        (saved / "bundle.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"bundle\.json cannot be read as JSON"):
            layerfuse.load(saved)

    @pytest.mark.parametrize("content", ["[]", "3", '{"format": "layerfuse-store"}', "{}"])
    def test_other_json(self, saved: Path, content: str):
        (saved / "bundle.json").write_text(content)
        with pytest.raises(FormatError, match=r"bundle\.json should be a layerfuse-bundle"):
            layerfuse.load(saved)

    def test_a_newer_version(self, saved: Path):
        change_json(saved, lambda value: value.update(format_version=99))
        with pytest.raises(FormatError, match=r"format version 99.* Upgrade with: pip"):
            layerfuse.load(saved)

    @pytest.mark.parametrize("version", ["1", None])
    def test_a_version_that_is_none(self, saved: Path, version: Any):
        change_json(saved, lambda value: value.update(format_version=version))
        with pytest.raises(FormatError, match=r"should be a whole number. It is damaged"):
            layerfuse.load(saved)

    def test_an_older_version(self, saved: Path):
        """What version 1 held has other fields, and is refused by the first that differs."""
        change_json(saved, lambda value: value.update(format_version=1, classes={"kind": "str"}))
        with pytest.raises(FormatError, match=r"classes.*Save the bundle again"):
            layerfuse.load(saved)

    @pytest.mark.slow
    def test_each_field_is_needed_and_of_one_kind(self, saved: Path):
        """Every field at every depth: removed, null, or something else."""
        path = saved / "bundle.json"
        whole = json.loads(path.read_text(encoding="utf-8"))
        nullable = {
            "revision", "prompt", "chat_prompt", "batch_tokens", "budget", "class_weight",
            "calibration", "store", "n_jobs", "random_state", "settings", "cv", "text_column",
            "label_column", "label_separator", "target_accuracy", "coverage", "abstention",
            "multilabel", "columns", "windows",
        }  # fmt: skip
        optional = {
            "cv", "text_column", "label_column", "label_separator", "settings", "strip_html",
            "columns",
        }  # fmt: skip
        named = {
            "format",
            "format_version",
            "fingerprints",
            "tensors",
        }  # with messages of their own
        n_changes = 0
        for keys, value in _fields(whole):
            name = keys[-1]
            if named & set(map(str, keys)):
                continue
            changes: list[Any] = [{"odd": [None]}, [[[[]]]]]
            changes += [] if name in nullable else [None]
            changes += [] if name in optional else [...]
            for change in changes:
                path.write_text(json.dumps(_changed(whole, keys, change)), encoding="utf-8")
                with pytest.raises(FormatError) as error:
                    load_bundle(saved)
                assert str(name) in str(error.value), (keys, value, change)
                n_changes += 1
        assert n_changes > 150

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v["classes"].append("new"), r"has shape \[(\d+), 2\], .* \[\1, 3\]"),
            (lambda v: v.update(classes=["a", "a"]), "classes: .*one of them twice"),
            (lambda v: v.update(classes=["a"]), "classes: .*fewer than two classes"),
            (
                lambda v: v["blocks"].pop(),
                r"has shape \[\d+, 2\], but blocks and classes need \[\d\d, 2\]",
            ),
            (lambda v: v["encoders"].pop(), r"encoders: \['bert'\].*\['bert', 'llama'\]"),
            (lambda v: v["encoders"].append(v["encoders"][0]), r"encoders: \['bert', 'bert'"),
            (lambda v: v["blocks"][1].update(encoder="bert"), "encoders: "),
            (lambda v: v["blocks"][0].update(layer=-1), "blocks.0.layer"),
            (lambda v: v["blocks"][0].update(pooling="mean/max"), "mean/max of an encoder"),
            (lambda v: v["blocks"][0].update(pooling="x"), "blocks.0: .*'x'"),
            (lambda v: v["head"].update(kind="neural"), "Unknown head 'neural'"),
            (lambda v: v["head"].update(kind="mlp"), "no tensor 'weight.0'"),
            (lambda v: v.update(fusion="x"), "Unknown fusion 'x'"),
            (lambda v: v.update(fusion="mean"), "no tensor 'projection.0'"),
            (lambda v: v["encoders"][0].update(new=1), r"encoders\.0\.new"),
            (lambda v: v.update(temperature="warm"), "temperature"),
            (lambda v: v.update(temperature=0), "temperature"),
            (lambda v: v.update(temperature=float("inf")), "temperature"),
            (lambda v: v["facts"]["cv"].pop("ece"), r"facts\.cv\..*ece"),
            (
                lambda v: v["facts"]["settings"].update(budget=["mapping", {"x": 1}]),
                r"facts\.settings\.budget.*'x'",
            ),
            (
                lambda v: v["facts"]["settings"].update(budget=["Budget", {"dims": -1}]),
                r"facts\.settings\.budget.*dims",
            ),
            (lambda v: v["facts"]["settings"].update(encoders=[]), r"facts\.settings\.encoders"),
        ],
    )
    def test_changed_json(
        self, saved: Path, change: Callable[[dict[str, Any]], object], message: str
    ):
        change_json(saved, change)
        with pytest.raises(FormatError, match=message):
            layerfuse.load(saved)

    def test_other_weights_tokenizer_or_configuration(self, tiny: TinyModels, tmp_path: Path):
        folder = save_model("bert", tmp_path / "model")
        model = LayerFusionClassifier(f"bert={folder}", cv=2).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            whole = (folder / name).read_bytes()
            if name == "model.safetensors":
                weights = load_file(folder / name)
                weights["embeddings.word_embeddings.weight"][0, 0] += 1
                save_file(weights, folder / name, metadata={"format": "pt"})
            else:
                (folder / name).write_bytes(whole + b"\n")
            with pytest.raises(
                FormatError, match="not the bert that the bundle was trained with: its files differ"
            ):
                layerfuse.load(tmp_path / "bundle")
            (folder / name).write_bytes(whole)
        layerfuse.load(tmp_path / "bundle")
        with pytest.raises(
            FormatError, match=r"files differ\. Point to the original with --encoder bert=PATH"
        ):
            layerfuse.load(tmp_path / "bundle", encoders={"bert": tiny("bert", seed=1)})
        (folder / "model.safetensors").unlink()
        with pytest.raises(UnsupportedModelError, match=r"has no \.safetensors weights"):
            layerfuse.load(tmp_path / "bundle")

    def test_an_encoder_that_it_does_not_read(self, saved: Path):
        with pytest.raises(ConfigError, match="has no encoder 'brt'; it has"):
            layerfuse.load(saved, encoders={"brt": saved})

    @pytest.mark.parametrize("name", ["bundle.json", "tensors.safetensors"])
    def test_every_byte_counts(self, saved: Path, name: str):
        """A changed byte is never taken in silence: temperature, prompt, a weight."""
        random = np.random.default_rng(0)
        whole = (saved / name).read_bytes()
        for place in random.integers(0, len(whole), 60):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(random.integers(0, 7))
            (saved / name).write_bytes(damaged)
            if name == "bundle.json" and json_or_none(damaged) == json.loads(whole):
                continue  # white space
            with pytest.raises(LayerfuseError):
                load_bundle(saved)
        (saved / name).write_bytes(whole)
        load_bundle(saved)

    def test_numbers_that_are_none(self, saved: Path):
        change_tensors(saved, lambda tensors: tensors["head.coef"].fill(np.nan))
        with pytest.raises(FormatError, match=r"head\.coef.*NaN"):
            load_bundle(saved)

    @pytest.mark.parametrize("depth", [2_000, 100_000])
    def test_json_without_an_end(self, saved: Path, depth: int):
        (saved / "bundle.json").write_text("[" * depth, encoding="utf-8")
        with pytest.raises(FormatError, match="cannot be read"):
            load_bundle(saved)
        (saved / "bundle.json").write_text('{"a":' * depth + "1" + "}" * depth, encoding="utf-8")
        with pytest.raises(FormatError):
            load_bundle(saved)

    def test_a_layer_that_the_encoder_lacks(self, saved: Path):
        change_json(saved, lambda value: value["blocks"][0].update(layer=40))
        with pytest.raises(LayerfuseError, match="has no layer 40"):
            layerfuse.load(saved)

    def test_what_is_loaded_has_no_training_rows(self, saved: Path):
        again = layerfuse.load(saved, device="cpu")
        assert not hasattr(again, "fit_record_")
        with pytest.raises(NotAvailableError, match="training rows are not available"):
            _ = again.verdict_

    def test_the_bundle_alone_can_be_read_without_its_encoders(
        self, fitted: LayerFusionClassifier, tiny: TinyModels, tmp_path: Path
    ):
        specs = tuple(replace_source(EncoderSpec.of(encoder)) for encoder in fitted.encoders_)
        bundle = Bundle(fitted.model_, fitted.label_space_, specs)
        save_bundle(replace(bundle), tmp_path / "bundle")
        again = load_bundle(tmp_path / "bundle")
        assert again.encoders == specs
        assert again.space.classes.tolist() == ["bad", "good"]
        with pytest.raises(NotFoundError):
            layerfuse.load(tmp_path / "bundle")
        places = {spec.name: tiny(spec.name) for spec in specs}
        moved = layerfuse.load(tmp_path / "bundle", encoders=places, device="cpu")
        assert_same_predictions(moved, fitted)
        assert not hasattr(moved, "cv_")
        moved.save(tmp_path / "copy")


def replace_source(spec: EncoderSpec) -> EncoderSpec:
    return spec.model_copy(update={"source": "/nowhere/at/all"})


Keys = tuple[str | int, ...]


def json_or_none(data: bytearray) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _fields(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each field of JSON objects, with the way to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(value, dict):
            yield (*keys, key), inner
        if isinstance(inner, (dict, list)):
            yield from _fields(inner, (*keys, key))


def _changed(whole: dict[str, Any], keys: Keys, value: Any) -> dict[str, Any]:
    """A copy with one field changed, or left out where ``value`` is ``...``."""
    copy: dict[str, Any] = json.loads(json.dumps(whole))
    place: Any = copy
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return copy
