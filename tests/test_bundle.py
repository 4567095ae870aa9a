"""The saved classifier: what is loaded is what was saved, or it is refused with a reason."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

import layerfuse
from families import TinyModels, save_model
from helpers import planted
from layerfuse import FrozenEncoder, LayerFusionClassifier
from layerfuse.blocks import BlockRef
from layerfuse.bundle import Bundle, EncoderSpec, load_bundle, save_bundle
from layerfuse.errors import (
    ConfigError,
    FormatError,
    LayerfuseError,
    NotFoundError,
    StorageError,
    UnsupportedModelError,
)
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.fusion import FUSIONS
from layerfuse.heads import HEADS
from layerfuse.model_selection import SearchSpace
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

TEXTS, LABELS = planted(120)
OTHERS, _ = planted(60, seed=1)
FILES = {"bundle.json", "tensors.safetensors", "README.md"}


def build(*encoders: Any, **options: Any) -> LayerFusionClassifier:
    settings = {"device": "cpu", "dtype": "float32", "cv": 2, **options}
    return LayerFusionClassifier(encoders, **settings)


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels) -> LayerFusionClassifier:
    """Three blocks of two models; tests must not change it."""
    with threadpool_limits(1):
        model = build(
            f"bert={tiny('bert')}", f"llama={tiny('llama')}", selection="last",
            templates={"llama": "the {text} is"}, max_length=40,
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
    path.write_text(json.dumps(value), encoding="utf-8")


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


class TestThereAndBack:
    @pytest.mark.parametrize("head", ["ridge", "logistic"])
    @pytest.mark.parametrize("selection", ["last", "greedy", "best"])
    def test_probabilities_are_exactly_equal(
        self, tiny: TinyModels, tmp_path: Path, head: str, selection: str
    ):
        model = build(
            f"bert={tiny('bert')}", f"llama={tiny('llama')}", pooling=("mean", "last"),
            head=head, selection=selection, max_blocks=3,
        ).fit(TEXTS, LABELS)  # fmt: skip
        model.save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        np.testing.assert_array_equal(again.predict_proba(OTHERS), model.predict_proba(OTHERS))
        np.testing.assert_array_equal(again.predict(OTHERS), model.predict(OTHERS))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_encoders_compute_as_they_did(self, tiny: TinyModels, tmp_path: Path, dtype: str):
        """Whatever this machine would choose by itself."""
        model = build(f"bert={tiny('bert')}", dtype=dtype).fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert [encoder.dtype for encoder in again.encoders_] == [dtype]
        np.testing.assert_array_equal(again.predict_proba(OTHERS), model.predict_proba(OTHERS))

    def test_what_is_loaded_is_what_was_saved(self, fitted: LayerFusionClassifier, saved: Path):
        again = layerfuse.load(saved, device="cpu")
        assert again.model_.blocks == fitted.model_.blocks
        assert again.model_.calibrator == fitted.model_.calibrator
        assert again.model_.model.head.penalty == fitted.model_.model.head.penalty
        assert again.head == again.model_.model.head.kind == "ridge"
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

    @pytest.mark.parametrize(
        "labels",
        [
            pytest.param(["no", "yes"], id="str"),
            pytest.param([-1, 10**12], id="int"),
            pytest.param([False, True], id="bool"),
            pytest.param([0.1, 2.0], id="float"),
            pytest.param(["", 'a "quoted",\nü 🚢'], id="strange str"),
        ],
    )
    def test_labels_come_back_as_their_kind(
        self, tiny: TinyModels, tmp_path: Path, labels: list[Any]
    ):
        y = [labels[label == "good"] for label in LABELS]
        model = build(f"bert={tiny('bert')}").fit(TEXTS, y)
        model.save(tmp_path / "bundle")
        predicted = layerfuse.load(tmp_path / "bundle", device="cpu").predict(OTHERS)
        assert predicted.dtype.kind == model.classes_.dtype.kind
        assert {type(label) for label in predicted.tolist()} == {type(labels[0])}
        assert set(predicted.tolist()) == set(labels)

    def test_only_encoders_in_use_are_kept_and_cut(self, tiny: TinyModels, tmp_path: Path):
        model = build(
            f"bert={tiny('bert')}", f"llama={tiny('llama')}", layers=[0, 1], selection="best"
        )
        model.fit(TEXTS, LABELS).save(tmp_path / "bundle")
        (chosen,) = model.model_.blocks
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        assert [encoder.name for encoder in again.encoders_] == [chosen.encoder]
        assert again.encoders_[0].highest_layer == chosen.layer
        assert not again.encoders_[0].is_loaded
        again.predict(["good"])
        blocks = again.encoders_[0]._load().architecture.blocks
        assert blocks is not None
        assert len(blocks) == chosen.layer + 1  # the block that marks where reading stops

    def test_a_loaded_one_can_be_saved_again(self, saved: Path, tmp_path: Path):
        again = layerfuse.load(saved, device="cpu")
        again.save(tmp_path / "copy")
        copy = layerfuse.load(tmp_path / "copy", device="cpu")
        np.testing.assert_array_equal(copy.predict_proba(OTHERS), again.predict_proba(OTHERS))
        assert (saved / "tensors.safetensors").read_bytes() == (
            tmp_path / "copy" / "tensors.safetensors"
        ).read_bytes()

    def test_a_run_folder_and_a_text_as_path(self, saved: Path):
        expected = layerfuse.load(saved, device="cpu").predict_proba(OTHERS)
        for place in (saved.parent, str(saved), str(saved.parent)):
            found = layerfuse.load(place, device="cpu")
            np.testing.assert_array_equal(found.predict_proba(OTHERS), expected)

    def test_an_encoder_that_was_moved(
        self, fitted: LayerFusionClassifier, tiny: TinyModels, tmp_path: Path
    ):
        folder = shutil.copytree(tiny("bert"), tmp_path / "here")
        model = build(f"bert={folder}").fit(TEXTS, LABELS)
        model.save(tmp_path / "bundle")
        folder.rename(tmp_path / "there")
        with pytest.raises(NotFoundError, match="here"):
            layerfuse.load(tmp_path / "bundle", device="cpu")
        again = layerfuse.load(
            tmp_path / "bundle", device="cpu", encoders={"bert": tmp_path / "there"}
        )
        np.testing.assert_array_equal(again.predict_proba(OTHERS), model.predict_proba(OTHERS))


class TestEveryFusion:
    """Each with a head, from arrays: saved, loaded, used."""

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("fusion", FUSIONS)
    def test_there_and_back(self, tmp_path: Path, fusion: str, head: str):
        rng = np.random.default_rng(0)
        y = np.arange(60) % 3
        blocks = [BlockRef("bert", layer, "mean") for layer in range(3)]
        embeddings = {
            block: (rng.normal(size=(60, 8 + block.layer)) + y[:, None]).astype(np.float32)
            for block in blocks
        }
        space = SearchSpace("top_k", CostBudget(Budget(blocks=3), {}), fusion, head)
        targets = Targets.from_labels(y)
        sample = TrainingSample(embeddings, targets, probe_blocks(embeddings, targets), space)
        model = sample.fit(Plan(tuple(blocks), fusion, head), embeddings, targets)
        assert model.model.fusion.name == fusion
        kind = model.model.head.kind
        assert kind == ("linear" if FUSIONS[fusion].brings_head else head)
        spec = EncoderSpec("bert", "bert", None, {}, None, None, 8, "float32")
        save_bundle(Bundle(model, np.array(["a", "b", "c"]), (spec,), {}), tmp_path / "bundle")
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
        model = build(f"bert={tiny('bert')}", fusion=fusion, head=head, max_blocks=2)
        model.fit(TEXTS, LABELS).save(tmp_path / "bundle")
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        np.testing.assert_array_equal(again.predict_proba(OTHERS), model.predict_proba(OTHERS))
        assert again.fusion == fusion
        assert model.score(TEXTS, LABELS) > 0.8
        baselines = {baseline.name for baseline in model.run_baselines()}
        assert {"majority", "tfidf", "last_layer", "last_four", "last_matched"} <= baselines
        assert {"best_block", "first_1"} >= baselines - {
            *("majority", "tfidf", "last_layer", "last_four", "last_matched")
        }


class TestTheFolder:
    def test_nothing_in_it_can_run(self, saved: Path):
        assert {path.name for path in saved.iterdir()} == FILES
        json.loads((saved / "bundle.json").read_text(encoding="utf-8"))
        load_file(saved / "tensors.safetensors")
        assert (saved / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name")
        for path in saved.iterdir():
            assert b"\x80\x04" not in path.read_bytes()[:2], "a pickle"

    def test_the_card_names_blocks_encoders_and_numbers(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        card = (saved / "README.md").read_text(encoding="utf-8")
        for block in fitted.model_.blocks:
            assert f"- `{block}`" in card
        assert "Classes: bad, good." in card
        low, high = (100 * share for share in fitted.cv_.to_dict()["ci95"])
        assert (
            f"- nested cross-validation: accuracy {100 * fitted.cv_.accuracy.value:.1f} % "
            f"(95 % interval {low:.1f} to {high:.1f}), macro-F1 " in card
        )
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
        fitted.save(saved, overwrite=True)
        assert {path.name for path in saved.iterdir()} == FILES
        assert [path.name for path in saved.parent.iterdir()] == ["bundle"]
        assert layerfuse.load(saved, device="cpu").classes_.tolist() == ["bad", "good"]

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

    @pytest.mark.parametrize(
        ("classes", "kinds"),
        [
            (np.array([1j, b"a"], dtype=object), "bytes, complex"),
            (np.array([("a",), ("b",)], dtype=object)[:, 0:1], "list"),
            (np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[D]"), "date"),
        ],
    )
    def test_labels_that_json_does_not_know(
        self, fitted: LayerFusionClassifier, tmp_path: Path, classes: Any, kinds: str
    ):
        bundle = Bundle(fitted.model_, classes, (), {})
        with pytest.raises(ConfigError, match=f"Labels of type {kinds} cannot be saved"):
            save_bundle(bundle, tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    def test_facts_that_are_no_json_leave_nothing(
        self, fitted: LayerFusionClassifier, tmp_path: Path
    ):
        bundle = Bundle(fitted.model_, fitted.classes_, (), {"number": float("nan")})
        with pytest.raises(ValueError, match="Out of range float"):
            save_bundle(bundle, tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []


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
        assert str(error.value) == (
            f"{runs} holds runs and is none itself. Give one of them: {runs / 'one'}, "
            f"{runs / 'two'}."
        )
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

    @pytest.mark.parametrize("version", [2, 99, "1", None])
    def test_a_newer_version(self, saved: Path, version: Any):
        change_json(saved, lambda value: value.update(format_version=version))
        with pytest.raises(
            FormatError, match=r"format version .* reads up to 1. Upgrade with: pip"
        ):
            layerfuse.load(saved)

    @pytest.mark.parametrize("key", ["classes", "encoders", "blocks", "fusion", "head", "tensors"])
    @pytest.mark.parametrize("value", [None, [], {}, "x", 3, [1], {"kind": "x"}])
    def test_json_of_another_form(self, saved: Path, key: str, value: Any):
        change_json(saved, lambda whole: whole.update({key: value}))
        with pytest.raises(FormatError):
            layerfuse.load(saved)
        change_json(saved, lambda whole: whole.pop(key))
        with pytest.raises(FormatError, match="lacks something or was changed after it was saved"):
            layerfuse.load(saved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda v: v["classes"]["values"].append("new"),
                r"has shape \[(\d+), 2\], .* \[\1, 3\]",
            ),
            (lambda v: v["classes"].update(kind="int"), "labels are not all of type int"),
            (
                lambda v: v["blocks"].pop(),
                r"has shape \[\d+, 2\], but blocks and classes need \[\d\d, 2\]",
            ),
            (lambda v: v["encoders"].pop(), r"does not describe the encoders \['llama'\]"),
            (
                lambda v: v["head"].update(kind="neural"),
                "Unknown head 'neural'",
            ),
            (lambda v: v["head"].update(kind="mlp"), "no tensor 'weight.0'"),
            (lambda v: v["fusion"].update(name="x"), "Unknown fusion 'x'"),
            (lambda v: v["fusion"].update(name="mean"), "no tensor 'projection.0'"),
            (lambda v: v["encoders"][0].update(new=1), "TypeError: .*'new'"),
            (lambda v: v["blocks"][0].pop("layer"), "TypeError: .*'layer'"),
            (lambda v: v["calibration"].update(temperature="warm"), "TypeError"),
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
        build(f"bert={folder}").fit(TEXTS, LABELS).save(tmp_path / "bundle")
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

    def test_weights_that_are_gone(self, tmp_path: Path):
        folder = save_model("bert", tmp_path / "model")
        build(f"bert={folder}").fit(TEXTS, LABELS).save(tmp_path / "bundle")
        (folder / "model.safetensors").unlink()
        with pytest.raises(UnsupportedModelError, match=r"has no \.safetensors weights"):
            layerfuse.load(tmp_path / "bundle")

    def test_figures_that_were_changed(self, saved: Path):
        change_json(saved, lambda value: value["facts"]["nested cross-validation"].pop("ece"))
        with pytest.raises(FormatError, match="figures of its training were changed"):
            layerfuse.load(saved)

    def test_an_encoder_that_it_does_not_read(self, saved: Path):
        with pytest.raises(ConfigError, match="has no encoder 'brt'; it has"):
            layerfuse.load(saved, encoders={"brt": saved})

    def test_a_layer_that_the_encoder_lacks(self, saved: Path):
        change_json(saved, lambda value: value["blocks"][0].update(layer=40))
        with pytest.raises(LayerfuseError, match="has no layer 40"):
            layerfuse.load(saved)

    def test_what_is_loaded_has_no_training_rows(self, saved: Path):
        again = layerfuse.load(saved, device="cpu")
        with pytest.raises(ConfigError, match="training rows are gone"):
            again.run_baselines()

    def test_the_bundle_alone_can_be_read_without_its_encoders(
        self, fitted: LayerFusionClassifier, saved: Path
    ):
        bundle = load_bundle(saved)
        assert [spec.name for spec in bundle.encoders] == ["bert", "llama"]
        assert bundle.facts["nested cross-validation"] == fitted.cv_.to_dict()
        assert replace(bundle.encoders[0]) == bundle.encoders[0]
        assert isinstance(FrozenEncoder.from_pretrained(bundle.encoders[0].source), FrozenEncoder)
