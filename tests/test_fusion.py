"""Fusions against formulas written out in loops, their laws, and planted problems."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import Ridge

from helpers import scaled
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import ConfigError, FormatError
from layerfuse.fusion import FUSIONS, FittedFusion, check_fusion, fit_fusion, load_fusion
from layerfuse.heads import fit_head, ridge_leave_one_out, search_penalty
from layerfuse.probing.ridge import decompose
from layerfuse.targets import LabelSpace, Targets

Array = npt.NDArray[Any]

PROJECTED = ("sum", "mean", "hadamard", "matmul", "quaternion", "cooccurrence", "tensor")
LEARNED = ("scalar_mix", "gated", "bilinear")
RESIDUALS = tuple(f"{name}+residual" for name in PROJECTED + LEARNED)
OPERATIONS = tuple(name for name in FUSIONS if name not in RESIDUALS)
CLOSED = ("concat", *PROJECTED, *(f"{name}+residual" for name in PROJECTED))
DIMS = (12, 30, 9, 20, 16)


def problem(n: int = 120, k: int = 3, n_classes: int = 2, seed: int = 0) -> tuple[Any, Array]:
    """Scaled blocks that share some directions, and classes that two columns give away."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    shared = rng.normal(size=(n, 6))
    shared[:, :n_classes] += 2 * np.eye(n_classes)[y]
    arrays = [
        (shared @ rng.normal(size=(6, dim)) + rng.normal(size=(n, dim))).astype(np.float32)
        for dim in DIMS[:k]
    ]
    return scaled(arrays), y


def targets_of(y: Array, n_classes: int | None = None, weights: Array | None = None) -> Targets:
    return Targets(LabelSpace(np.arange(n_classes or int(y.max()) + 1)), y, weights=weights)


def fit(
    name: str, blocks: Any, y: Array, weights: Array | None = None, **options: Any
) -> FittedFusion:
    return fit_fusion(name, blocks, targets_of(y, weights=weights), **{"size": 16, **options})


def learned(fitted: FittedFusion, blocks: Any, y: Array, others: Any, truth: Array) -> float:
    """Accuracy on other rows, with the fusion's head or a ridge head."""
    head = fitted.head
    if head is None:
        targets = targets_of(y)
        penalty = search_penalty("ridge", fitted.features, targets)
        head = fit_head("ridge", fitted.features, targets, penalty)  # type: ignore[assignment]
    predicted = head.logits(fitted.fusion.transform(others)).argmax(axis=1)
    return float((predicted == truth).mean())


def xor(n: int, seed: int) -> tuple[list[Array], Array]:
    """The leading direction of one block times that of the other has the label's sign."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 2))
    arrays = []
    for j in range(2):
        X = rng.normal(size=(n, 8))
        X[:, :4] = hidden[:, j : j + 1] + 0.2 * X[:, :4]
        arrays.append(X.astype(np.float32))
    return arrays, (hidden[:, 0] * hidden[:, 1] > 0).astype(np.intp)


class TestNames:
    def test_all_operations(self) -> None:
        assert set(FUSIONS) == {"concat", *PROJECTED, *LEARNED, *RESIDUALS, "voting", "stacking"}
        for name, kind in FUSIONS.items():
            check_fusion(name)
            assert kind.name == name

    @pytest.mark.slow
    def test_a_head_comes_with_those_that_say_so(self) -> None:
        blocks, y = problem(60)
        for name, kind in FUSIONS.items():
            assert (fit(name, blocks, y).head is not None) == kind.brings_head

    def test_all_are_documented(self) -> None:
        page = (Path(__file__).parent.parent / "docs" / "how_it_works.md").read_text("utf-8")
        assert [name for name in OPERATIONS if f"\n| `{name}` " not in page] == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hadamart", r"'hadamart'. Choose from concat, sum.*Did you mean 'hadamard'\?"),
            ("gatedd+residual", r"'gatedd\+residual'.*Did you mean 'gated\+residual'"),
            ("sum+residul", "Unknown fusion"),
            ("+residual", "Unknown fusion"),
            ("concat+residual", "'concat' has no residual form.*Use fusion='concat'"),
            ("voting+residual", "'voting' has no residual form: it combines predictions"),
            ("stacking+residual", "'stacking' has no residual form"),
        ],
    )
    def test_others_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_fusion(name)
        blocks, y = problem(20)
        with pytest.raises(ConfigError):
            fit(name, blocks, y)
        with pytest.raises(FormatError):
            load_fusion(name, {}, 3)


@pytest.mark.slow
class TestLaws:
    @pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("name", [*OPERATIONS, "hadamard+residual", "gated+residual"])
    def test_any_number_of_blocks(self, name: str, k: int) -> None:
        blocks, y = problem(n=60, k=k, n_classes=3)
        fitted = fit(name, blocks, y)
        features = fitted.fusion.transform(blocks)
        assert fitted.fusion.name == name
        assert features.dtype == fitted.features.dtype == np.float32
        assert features.shape == fitted.features.shape
        assert np.isfinite(features).all()
        if fitted.head is not None:
            assert fitted.head.shape == (features.shape[1], 3)
        if name not in ("voting", "stacking"):
            np.testing.assert_array_equal(features, fitted.features)

    @pytest.mark.parametrize("name", [*OPERATIONS, "matmul+residual", "bilinear+residual"])
    def test_a_row_does_not_depend_on_the_others(self, name: str) -> None:
        blocks, y = problem()
        fusion = fit(name, blocks, y).fusion
        whole = fusion.transform(blocks)
        order = np.random.default_rng(0).permutation(len(y))
        turned = fusion.transform([block[order] for block in blocks])
        np.testing.assert_allclose(turned, whole[order], atol=1e-5)
        alone = [fusion.transform([block[row : row + 1] for block in blocks]) for row in range(9)]
        np.testing.assert_allclose(np.concatenate(alone), whole[:9], atol=1e-5)
        assert fusion.transform([block[:0] for block in blocks]).shape == (0, whole.shape[1])

    @pytest.mark.parametrize("name", FUSIONS)
    def test_pickled_there_and_back(self, name: str) -> None:
        blocks, y = problem(n=60)
        fusion = fit(name, blocks, y).fusion
        again = pickle.loads(pickle.dumps(fusion))
        np.testing.assert_array_equal(again.transform(blocks), fusion.transform(blocks))

    @pytest.mark.parametrize("k", [1, 3])
    @pytest.mark.parametrize("name", FUSIONS)
    def test_arrays_there_and_back(self, name: str, k: int) -> None:
        blocks, y = problem(n=60, k=k)
        fusion = fit(name, blocks, y).fusion
        saved = {key: array.copy() for key, array in fusion.arrays().items()}
        assert {array.dtype for array in saved.values()} <= {np.dtype(np.float32)}
        again = load_fusion(name, saved, k)
        assert again.name == name
        np.testing.assert_array_equal(again.transform(blocks), fusion.transform(blocks))
        for key, array in saved.items():
            with pytest.raises(FormatError):
                load_fusion(name, {other: saved[other] for other in saved if other != key}, k)
            for changed in (array[None], array.astype(np.float64), array[..., :0]):
                with pytest.raises(FormatError, match=r"expected float32\["):
                    load_fusion(name, {**saved, key: changed}, k)
        with pytest.raises(FormatError, match=r"no use for the tensors \['more'\]"):
            load_fusion(name, {**saved, "more": np.zeros(3, np.float32)}, k)

    @pytest.mark.parametrize("name", CLOSED)
    def test_closed_forms_do_not_read_labels(self, name: str) -> None:
        blocks, y = problem()
        one, other = fit(name, blocks, y), fit(name, blocks, np.roll(y, 1))
        np.testing.assert_array_equal(one.features, other.features)
        assert one.head is None

    @pytest.mark.parametrize(
        "name", ["sum", "hadamard", "matmul", "quaternion", "cooccurrence", "tensor"]
    )
    def test_the_output_is_scaled_like_a_block(self, name: str) -> None:
        blocks, y = problem()
        features = fit(name, blocks, y).features.astype(np.float64)
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
        varies = features.var(axis=0) > 0
        np.testing.assert_allclose(features.var(axis=0)[varies] * len(varies), 1, rtol=1e-3)

    @pytest.mark.parametrize("name", RESIDUALS)
    def test_a_residual_keeps_the_blocks_beside(self, name: str) -> None:
        blocks, y = problem()
        features = fit(name, blocks, y).features
        beside = np.concatenate(blocks, axis=1)
        np.testing.assert_array_equal(features[:, -beside.shape[1] :], beside)
        if name.startswith(PROJECTED):
            plain = fit(name.removesuffix("+residual"), blocks, y).features
            np.testing.assert_array_equal(features[:, : -beside.shape[1]], plain)

    @pytest.mark.parametrize("name", [*OPERATIONS, "hadamard+residual"])
    @pytest.mark.parametrize("counts", [(1, 1), (3, 1), (30, 1, 1), (2, 2, 2, 2)])
    def test_few_rows_and_constant_blocks(self, name: str, counts: tuple[int, ...]) -> None:
        y = np.repeat(np.arange(len(counts)), counts)
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(len(y), dim)).astype(np.float32) for dim in (5, 40)]
        arrays.append(np.ones((len(y), 3), np.float32))
        blocks = scaled(arrays)
        fitted = fit(name, blocks, y)
        assert np.isfinite(fitted.features).all()
        assert np.isfinite(fitted.fusion.transform(blocks)).all()
        if fitted.head is not None:
            assert np.isfinite(fitted.head.logits(fitted.features)).all()

    @pytest.mark.parametrize("name", [*LEARNED, "voting"])
    def test_a_class_without_rows_is_never_predicted(self, name: str) -> None:
        blocks, y = problem(n=90, n_classes=2)
        fitted = fit_fusion(name, blocks, targets_of(y * 2, 4), size=8)
        assert fitted.head is not None
        rng = np.random.default_rng(1)
        far = [np.concatenate([b, rng.normal(size=b.shape).astype(np.float32)]) for b in blocks]
        logits = fitted.head.logits(fitted.fusion.transform(far))
        assert set(logits.argmax(axis=1)) == {0, 2}


class TestProjected:
    """Against loops over rows, from the projections that the fusion names."""

    def oracle(self, name: str, vectors: list[Array]) -> Array:
        if name == "sum":
            return np.asarray(sum(vectors))
        if name == "mean":
            return np.asarray(sum(vectors)) / len(vectors)
        if name == "hadamard":
            product = np.ones_like(vectors[0])
            for vector in vectors:
                product = product * vector
            return product
        if name == "matmul":
            r = math.isqrt(len(vectors[0]))
            square = [vector.reshape(r, r) for vector in vectors]
            return np.linalg.multi_dot(square).ravel() if len(square) > 1 else square[0].ravel()
        if name == "cooccurrence":
            H, size = np.array(vectors), len(vectors[0])
            pooled = [[2 * expit(a @ b / size) - 1 for b in H] for a in H]
            return np.concatenate([np.ravel(pooled), H.mean(axis=0)])
        if name == "tensor":
            k = len(vectors)
            pairs = [(a, b) for a in range(k) for b in range(a + 1, k)] or [(0, 0)]
            return np.array([x * y for a, b in pairs for x in vectors[a] for y in vectors[b]])
        # A quaternion is the complex matrix [[a + bi, c + di], [-c + di, a - bi]].
        quarters = len(vectors[0]) // 4
        found = np.zeros((4, quarters))
        for q in range(quarters):
            whole = np.eye(2, dtype=complex)
            for vector in vectors:
                a, b, c, d = vector.reshape(4, quarters)[:, q]
                whole = whole @ np.array([[a + b * 1j, c + d * 1j], [-c + d * 1j, a - b * 1j]])
            found[:, q] = whole[0, 0].real, whole[0, 0].imag, whole[0, 1].real, whole[0, 1].imag
        return found.ravel()

    @pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("name", PROJECTED)
    def test_the_formula(self, name: str, k: int) -> None:
        blocks, y = problem(k=k)
        fitted = fit(name, blocks, y)
        maps = [fitted.fusion.arrays()[f"projection.{j}"].astype(float) for j in range(k)]
        rows = [
            self.oracle(name, [block[row] @ P for block, P in zip(blocks, maps, strict=True)])
            for row in range(len(y))
        ]
        table = np.array(rows)
        spread = table.std(axis=0)
        expected = (table - table.mean(axis=0)) / spread / math.sqrt(table.shape[1])
        np.testing.assert_allclose(fitted.features, expected, atol=2e-4)

    @pytest.mark.parametrize("k", [1, 3])
    def test_projections_are_principal_directions(self, k: int) -> None:
        blocks, y = problem(k=k)
        arrays = fit("sum", blocks, y).fusion.arrays()
        for j, block in enumerate(blocks):
            width = arrays["mean"].size
            assert width == min(9 if k == 3 else 12, 16)
            P = arrays[f"projection.{j}"].astype(float)
            _, _, Vt = np.linalg.svd(block.astype(float), full_matrices=False)
            cosines = np.abs((P / np.linalg.norm(P, axis=0) * Vt[:width].T).sum(axis=0))
            np.testing.assert_allclose(cosines, 1, atol=1e-3)
            assert np.square(block @ P).mean() == pytest.approx(1, rel=1e-3)
            assert (P[np.abs(P).argmax(axis=0), np.arange(width)] > 0).all()

    def test_principal_coordinates_are_cut_to_their_first_columns(self) -> None:
        blocks, y = problem(k=2)
        coordinates = [decompose(block).rotated for block in blocks]
        fitted = fit("hadamard", coordinates, y, size=5)
        for j, Q in enumerate(coordinates):
            P = fitted.fusion.arrays()[f"projection.{j}"]
            first = Q[:, :5] * np.abs(np.diag(P))
            np.testing.assert_allclose(np.abs(Q @ P), np.abs(first), atol=1e-2)

    @pytest.mark.parametrize(
        ("name", "size", "d_out"),
        [
            ("sum", 256, 9), ("sum", 5, 5), ("matmul", 256, 9), ("matmul", 8, 4), ("matmul", 3, 1),
            ("quaternion", 256, 8), ("quaternion", 7, 4), ("quaternion", 2, 4),
            ("cooccurrence", 5, 14), ("hadamard", 1, 1),
            ("tensor", 256, 3 * 9**2), ("tensor", 2, 3 * 2**2),
        ],
    )  # fmt: skip
    def test_sizes(self, name: str, size: int, d_out: int) -> None:
        blocks, y = problem()
        assert fit(name, blocks, y, size=size).features.shape == (120, d_out)

    def test_a_constant_block_does_not_cut_the_others(self) -> None:
        blocks, y = problem()
        constant = np.zeros((len(y), 4), np.float32)
        alone, beside = fit("sum", blocks, y), fit("sum", [*blocks, constant], y)
        np.testing.assert_allclose(beside.features, alone.features, atol=1e-6)

    def test_fewer_rows_than_columns(self) -> None:
        blocks, y = problem(n=8, k=2)
        assert fit("sum", blocks, y).features.shape == (8, 7)

    @pytest.mark.parametrize("name", ["hadamard", "matmul", "quaternion"])
    def test_products_of_many_blocks_stay_finite(self, name: str) -> None:
        (block, *_), y = problem()
        features = fit(name, [block] * 40, y).features
        assert np.isfinite(features).all()
        assert (features.std(axis=0) > 0).all()


@pytest.mark.slow
class TestLearned:
    """The numpy formulas against torch, and what training finds."""

    def oracle(self, name: str, arrays: dict[str, Array], blocks: list[Array]) -> Array:
        w = {key: torch.tensor(array) for key, array in arrays.items()}
        x = [torch.tensor(block) for block in blocks]
        k = len(x)
        if name == "scalar_mix":
            share = torch.softmax(w["mix"], 0)
            return (
                w["gamma"] * sum(share[j] * x[j] @ w[f"projection.{j}"] for j in range(k))
            ).numpy()
        if name == "gated":
            gate = torch.nn.Linear(sum(DIMS[:k]), k)
            with torch.no_grad():
                gate.weight.copy_(torch.cat([w[f"gate.{j}"] for j in range(k)]).T)
                gate.bias.copy_(w["gate_bias"])
                share = torch.softmax(gate(torch.cat(x, 1)), 1)
            experts = [torch.relu(x[j] @ w[f"expert.{j}"] + w[f"bias.{j}"]) for j in range(k)]
            return torch.einsum("nk,knd->nd", share, torch.stack(experts)).numpy()
        pairs = list(itertools.combinations(range(k), 2)) or [(0, 0)]
        fused = torch.zeros(())
        for a, b in pairs:
            left = torch.tanh(x[a] @ w[f"left.{a}"] + w[f"left_bias.{a}"])
            fused = fused + left * torch.tanh(x[b] @ w[f"right.{b}"] + w[f"right_bias.{b}"])
        return fused.numpy()

    @pytest.mark.parametrize("k", [1, 2, 4])
    @pytest.mark.parametrize("name", LEARNED)
    def test_the_formula(self, name: str, k: int) -> None:
        blocks, y = problem(k=k)
        fitted = fit(name, blocks, y)
        expected = self.oracle(name, fitted.fusion.arrays(), blocks)
        np.testing.assert_allclose(fitted.features, expected, atol=1e-4)

    @pytest.mark.parametrize("name", [*LEARNED, *(f"{name}+residual" for name in LEARNED)])
    def test_a_linear_problem_is_learned(self, name: str) -> None:
        blocks, y = problem(n=500, n_classes=3)
        parts = [[block[:300] for block in blocks], [block[300:] for block in blocks]]
        fitted = fit(name, parts[0], y[:300])
        assert fitted.head is not None
        assert fitted.head.kind == "linear"
        logits = fitted.head.logits(fitted.fusion.transform(parts[1]))
        assert (logits.argmax(axis=1) == y[300:]).mean() > 0.8
        loss = -log_softmax(logits, axis=1)[np.arange(200), y[300:]].mean()
        assert loss < 0.6  # of ln 3 = 1.1 for knowing nothing

    @pytest.mark.parametrize("name", LEARNED)
    def test_the_seed_decides_and_the_users_random_state_stays(self, name: str) -> None:
        blocks, y = problem()
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one, same, other = (fit(name, blocks, y, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.features, same.features)
        assert np.abs(one.features - other.features).max() > 1e-4
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", [*LEARNED, "voting"])
    def test_a_heavier_class_is_predicted_more_often(self, name: str) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 200)
        arrays = [(rng.normal(size=(200, 6)) + 0.3 * y[:, None]).astype(np.float32)] * 2
        blocks = scaled(arrays)
        counts = []
        for weight in (0.1, 1.0, 10.0):
            fitted = fit(name, blocks, y, weights=np.array([1.0, weight])[y])
            assert fitted.head is not None
            counts.append(int(fitted.head.logits(fitted.features).argmax(axis=1).sum()))
        assert counts[0] < counts[1] < counts[2]

    def test_blocks_that_cannot_be_written_to(self) -> None:
        blocks, y = problem()
        for block in blocks:
            block.flags.writeable = False
        fit("gated", blocks, y)

    def test_scalar_mix_finds_the_block_that_knows(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 600)
        arrays = [rng.normal(size=(600, 10)).astype(np.float32) for _ in range(3)]
        arrays[1] += 1.5 * (2 * y[:, None] - 1).astype(np.float32)
        blocks = scaled(arrays)
        mix = fit("scalar_mix", blocks, y).fusion.arrays()["mix"]
        assert mix.argmax() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learns"),
    [("concat", False), ("sum", False), ("voting", False), ("hadamard+residual", True),
     ("hadamard", True), ("bilinear", True), ("bilinear+residual", True)],
)  # fmt: skip
def test_what_two_blocks_say_only_together(name: str, learns: bool) -> None:
    arrays, y = xor(1500, seed=0)
    blocks = scaled(arrays, 1000)
    train, test = [block[:1000] for block in blocks], [block[1000:] for block in blocks]
    fitted = fit(name, train, y[:1000])
    accuracy = learned(fitted, train, y[:1000], test, y[1000:])
    assert accuracy > 0.85 if learns else accuracy < 0.6


class TestPredictions:
    """Against ridge regression that is fitted again without each row."""

    def unseen(self, blocks: list[Array], y: Array, n_classes: int) -> list[Array]:
        targets, found = np.eye(n_classes)[y], []
        for block in blocks:
            alpha = ridge_leave_one_out(block, targets_of(y)).penalty
            table = np.empty((len(y), n_classes))
            for row in range(len(y)):
                others = np.arange(len(y)) != row
                model = Ridge(alpha=alpha).fit(block[others].astype(float), targets[others])
                table[row] = model.predict(block[row : row + 1])
            found.append(table)
        return found

    def seen(self, blocks: list[Array], y: Array, n_classes: int) -> list[Array]:
        return [
            Ridge(alpha=ridge_leave_one_out(block, targets_of(y)).penalty)
            .fit(block.astype(float), np.eye(n_classes)[y])
            .predict(block)
            for block in blocks
        ]

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_stacking(self, n_classes: int) -> None:
        blocks, y = problem(n=40, n_classes=n_classes)
        fitted = fit("stacking", blocks, y)
        unseen = np.concatenate(self.unseen(blocks, y, n_classes), axis=1)
        mean, spread = unseen.mean(axis=0), unseen.std(axis=0) * math.sqrt(3 * n_classes)
        np.testing.assert_allclose(fitted.features, (unseen - mean) / spread, atol=2e-3)
        seen = np.concatenate(self.seen(blocks, y, n_classes), axis=1)
        np.testing.assert_allclose(
            fitted.fusion.transform(blocks), (seen - mean) / spread, atol=2e-3
        )
        assert fitted.head is None

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_voting(self, n_classes: int) -> None:
        blocks, y = problem(n=40, n_classes=n_classes)
        fitted = fit("voting", blocks, y)
        unseen, seen = self.unseen(blocks, y, n_classes), self.seen(blocks, y, n_classes)
        temperatures = [
            TemperatureCalibrator.fit(table, targets_of(y)).temperature for table in unseen
        ]
        for tables, features in (
            (unseen, fitted.features),
            (seen, fitted.fusion.transform(blocks)),
        ):
            proba = [softmax(s / t, axis=1) for s, t in zip(tables, temperatures, strict=True)]
            np.testing.assert_allclose(np.exp(features), np.mean(proba, axis=0), atol=2e-3)
        assert fitted.head is not None
        assert fitted.head.kind == "linear"
        np.testing.assert_allclose(fitted.head.logits(fitted.features), fitted.features, atol=1e-6)

    @pytest.mark.parametrize("name", ["voting", "stacking"])
    def test_blocks_that_each_know_one_part(self, name: str) -> None:
        blocks, y = problem(n=500, k=5, n_classes=2, seed=3)
        parts = [[block[:300] for block in blocks], [block[300:] for block in blocks]]
        fitted = fit(name, parts[0], y[:300])
        assert learned(fitted, parts[0], y[:300], parts[1], y[300:]) > 0.85

    def test_rows_of_weight_zero_are_as_good_as_left_out(self) -> None:
        blocks, y = problem(n=60)
        blocks = [block - block[:40].mean(axis=0) for block in blocks]
        weighted = fit("stacking", blocks, y, weights=np.repeat([1.0, 0.0], [40, 20]))
        without = fit("stacking", [block[:40] for block in blocks], y[:40])
        for key, array in without.fusion.arrays().items():
            if key.startswith("coef"):
                np.testing.assert_allclose(weighted.fusion.arrays()[key], array, atol=1e-3)
        assert np.isfinite(weighted.features).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [*LEARNED, "voting", "stacking"])
    def test_equal_weights_change_nothing(self, name: str) -> None:
        blocks, y = problem(n=60)
        plain, weighted = fit(name, blocks, y), fit(name, blocks, y, weights=np.full(60, 0.3))
        np.testing.assert_array_equal(weighted.features, plain.features)
