"""What encoders and pipelines cost, budgets, and the Pareto front."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from itertools import compress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from layerfuse import BlockRef
from layerfuse.embeddings.cost_record import CostRecord, ShardCost, record_cost, undisturbed
from layerfuse.errors import ConfigError
from layerfuse.resources import (
    Budget,
    EncoderCost,
    PipelineCost,
    pareto_front,
    pipeline_cost,
    resolve_budget,
)

SMALL = EncoderCost(
    encoder="small",
    parameters=(1_000_000, 1_500_000, 2_000_000, 2_600_000),
    bytes_per_parameter=4,
    ms_per_text=7.0,
    dims=384,
    tokenize_ms_per_text=1.0,
)
LARGE = EncoderCost(
    encoder="large",
    parameters=(10_000_000, 30_000_000, 50_000_000),
    bytes_per_parameter=2,
    ms_per_text=41.0,
    dims=1024,
    tokenize_ms_per_text=1.0,
)
COSTS = {"small": SMALL, "large": LARGE}


def refs(*texts: str) -> list[BlockRef]:
    return [BlockRef.parse(text) for text in texts]


class TestEncoderCost:
    def test_each_layer_has_its_share(self):
        assert SMALL.n_layers == 3
        assert [SMALL.parameters_at(layer) for layer in range(4)] == list(SMALL.parameters)
        assert [SMALL.memory_mb_at(layer) for layer in range(4)] == [4.0, 6.0, 8.0, 10.4]
        assert [SMALL.ms_at(layer) for layer in range(4)] == [1.0, 3.0, 5.0, 7.0]

    def test_a_model_that_cannot_stop_early_takes_its_time_at_every_layer(self):
        whole = dataclasses.replace(SMALL, stops_early=False)
        assert [whole.ms_at(layer) for layer in range(4)] == [7.0] * 4

    @pytest.mark.parametrize("layer", [-1, 4])
    def test_layers_that_are_not_there_are_refused(self, layer: int):
        for ask in (SMALL.parameters_at, SMALL.memory_mb_at, SMALL.ms_at):
            with pytest.raises(ConfigError, match=f"small has no layer {layer}: .* 0 to 3"):
                ask(layer)


class TestPipelineCost:
    def test_an_encoder_counts_once_at_its_highest_layer(self):
        cost = pipeline_cost(refs("small:2:mean", "small:0:mean", "small:2:max"), COSTS)
        assert cost == PipelineCost(3, 1, 3 * 384, 2_000_000, 8.0, 5.0)

    def test_encoders_add_up(self):
        cost = pipeline_cost(refs("small:1:mean", "large:1:last", "small:3:mean"), COSTS)
        assert cost == PipelineCost(3, 2, 2 * 384 + 1024, 32_600_000, 70.4, 28.0)

    def test_no_blocks_cost_nothing(self):
        assert pipeline_cost([], COSTS) == PipelineCost(0, 0, 0, 0, 0.0, 0.0)

    def test_adding_a_block_makes_nothing_cheaper(self):
        rng = np.random.default_rng(0)
        every = [BlockRef(name, i, "mean") for name, c in COSTS.items() for i in range(c.n_layers)]
        for _ in range(50):
            order = rng.permutation(len(every))[: rng.integers(1, len(every) + 1)]
            blocks = [every[place] for place in order]
            less, more = pipeline_cost(blocks[:-1], COSTS), pipeline_cost(blocks, COSTS)
            assert all(
                before <= after
                for before, after in zip(asdict(less).values(), asdict(more).values(), strict=True)
            )

    def test_an_encoder_without_a_cost_is_named(self):
        with pytest.raises(ConfigError, match=r"Unknown encoder 'smal'.*Did you mean 'small'"):
            pipeline_cost(refs("smal:1:mean"), COSTS)
        with pytest.raises(ConfigError, match="large has no layer 3"):
            pipeline_cost(refs("large:3:mean"), COSTS)


class TestBudget:
    COST = PipelineCost(3, 2, 1792, 32_600_000, 70.4, 28.04)

    def test_without_limits_all_is_allowed(self):
        assert Budget().exceeded(self.COST) == []
        assert Budget().limits == {}

    @pytest.mark.parametrize(
        ("name", "enough", "told"),
        [
            ("blocks", 3, "3 blocks of at most 2 (--max-blocks)"),
            ("dims", 1792, "1,792 dimensions of at most 1,791 (--max-dims)"),
            (
                "parameters",
                32_600_000,
                "32,600,000 parameters of at most 32,599,999 (--max-parameters)",
            ),
            ("ms_per_text", 28.04, "28.04 ms per text of at most 27.04 (--max-ms)"),
            ("memory_mb", 70.4, "70.4 MB of weights of at most 69.4 (--max-memory-mb)"),
        ],
    )
    def test_each_limit_holds(self, name: str, enough: float, told: str):
        assert Budget(**{name: enough}).exceeded(self.COST) == []
        tight = Budget(**{name: enough - 1})
        assert tight.exceeded(self.COST) == [told]
        assert tight.limits == {name: enough - 1}

    def test_all_that_is_exceeded_is_told(self):
        assert Budget(blocks=2, dims=5000, ms_per_text=20).exceeded(self.COST) == [
            "3 blocks of at most 2 (--max-blocks)",
            "28.04 ms per text of at most 20 (--max-ms)",
        ]

    @pytest.mark.parametrize("name", ["blocks", "dims", "ms_per_text", "parameters", "memory_mb"])
    @pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "20"])
    def test_limits_that_are_none_are_refused(self, name: str, value: Any):
        with pytest.raises(ConfigError, match=rf"budget's {name} is .*; give a positive number"):
            Budget(**{name: value})

    @pytest.mark.parametrize("name", ["blocks", "dims", "parameters"])
    def test_what_is_counted_is_whole(self, name: str):
        with pytest.raises(ConfigError, match=rf"budget's {name} is 2.5; give a whole number"):
            Budget(**{name: 2.5})

    @pytest.mark.parametrize(
        "limits",
        [
            {"dims": np.int64(800), "ms_per_text": np.float32(20)},
            {"blocks": np.float64(3), "memory_mb": np.int32(1)},
        ],
    )
    def test_numbers_of_numpy_are_numbers(self, limits: dict[str, Any]):
        budget = resolve_budget(limits)
        assert budget == Budget(**{name: limit.item() for name, limit in limits.items()})
        json.dumps(asdict(budget))
        with pytest.raises(ConfigError, match="give a positive number"):
            resolve_budget({"dims": np.int64(0)})
        with pytest.raises(ConfigError, match="give a positive number"):
            resolve_budget({"dims": np.bool_(True)})

    def test_a_mapping_becomes_a_budget(self):
        budget = Budget(ms_per_text=20, dims=800)
        assert resolve_budget({"dims": 800, "ms_per_text": 20}) == budget
        assert resolve_budget(budget) is budget
        assert resolve_budget(None) == Budget() == resolve_budget({})
        assert resolve_budget(asdict(budget)) == budget
        with pytest.raises(ConfigError, match=r"limit 'dim'.*Did you mean 'dims'"):
            resolve_budget({"dim": 800})
        with pytest.raises(ConfigError, match="budget=20 is not a Budget"):
            resolve_budget(20)  # type: ignore[arg-type]


Point = tuple[float, PipelineCost]


def brute_force(points: list[Point]) -> list[bool]:
    """The definition, word by word."""

    def dominates(one: Point, other: Point) -> bool:
        (accuracy, cost), (other_accuracy, other_cost) = one, other
        pairs = (
            (accuracy, other_accuracy),
            (other_cost.ms_per_text, cost.ms_per_text),
            (other_cost.memory_mb, cost.memory_mb),
            (other_cost.dims, cost.dims),
        )
        no_worse = all(mine >= theirs for mine, theirs in pairs)
        return no_worse and any(mine > theirs for mine, theirs in pairs)

    return [not any(dominates(other, one) for other in points) for one in points]


class TestParetoFront:
    def test_against_the_definition(self):
        rng = np.random.default_rng(0)
        for levels in (2, 3, 6, 50):
            for _ in range(30):
                numbers = rng.integers(1, levels + 1, size=(rng.integers(1, 25), 4)).tolist()
                points = [
                    (a / levels, PipelineCost(1, 1, d, 1, float(m), float(t)))
                    for a, d, m, t in numbers
                ]
                front = pareto_front(points)
                assert front == brute_force(points)
                assert any(front), "something is always best"
                assert all(pareto_front(compress(points, front)))

    def test_equals_are_kept(self):
        cheap = PipelineCost(1, 1, 384, 10, 1.0, 1.0)
        dear = PipelineCost(1, 1, 384, 10, 1.0, 2.0)
        points = [(0.8, cheap), (0.8, dear), (0.9, dear), (0.8, cheap)]
        assert pareto_front(points) == [True, False, True, True]
        assert pareto_front([]) == []


class TestRecord:
    @staticmethod
    def encoder(stops_early: bool = True) -> Any:
        """What a record takes over from an encoder."""
        return SimpleNamespace(
            layer_parameters=(10, 20, 30, 40, 50),
            bytes_per_parameter=2.0,
            dim=8,
            stops_early=stops_early,
            device="cpu",
            dtype="bfloat16",
        )

    @staticmethod
    def shard(layer: int, n_texts: int, seconds: float, *batches: tuple[int, float]) -> ShardCost:
        n_tokens = sum(tokens for tokens, _ in batches)
        return ShardCost(layer, n_texts, n_tokens, n_tokens, seconds, batches)

    def test_the_first_of_several_batches_is_left_out(self):
        shards = [
            self.shard(4, 20, 0.2, (120, 99.0), (100, 1.0)),
            self.shard(4, 10, 0.1, (80, 0.8)),
        ]
        record = record_cost(shards, self.encoder())
        assert record is not None
        assert (record.n_texts, record.n_tokens, record.timed_tokens) == (30, 300, 180)
        cost = record.cost("e")
        assert cost.tokenize_ms_per_text == pytest.approx(10)
        assert cost.ms_per_text == pytest.approx(10 + 10 * 10)  # 10 ms a token, 10 tokens a text
        assert (cost.tokens_per_text, cost.encoder) == (10, "e")

    def test_a_warm_encoders_first_batch_counts(self):
        shards = [self.shard(4, 10, 0.0, (60, 1.2), (40, 0.8))]
        record = record_cost(shards, self.encoder(), warm=True)
        assert record is not None
        assert record.timed_tokens == 100
        assert record.cost("e").ms_per_text == pytest.approx(200)

    def test_the_layer_that_took_the_most_work_counts(self):
        """Texts that lacked only low layers ran beside texts that lacked all."""
        shards = [
            self.shard(layer, n_tokens // 10, 0.1, (n_tokens, 0.01 * layer * n_tokens))
            for layer, n_tokens in ((0, 900), (1, 300), (2, 200))
        ]
        record = record_cost(shards, self.encoder())
        assert record is not None
        assert (record.layer, record.n_texts) == (2, 20)
        assert record.cost("e").ms_at(4) == pytest.approx(5 + 10 * 10 * 4)
        whole = record_cost(shards, self.encoder(stops_early=False))
        assert whole is not None
        assert (whole.layer, whole.n_texts) == (4, 90)

    def test_no_block_no_record(self):
        assert record_cost([], self.encoder()) is None
        assert record_cost([self.shard(0, 5, 0.1, (50, 0.1))], self.encoder()) is None

    def test_a_record_survives_json(self):
        record = record_cost([self.shard(3, 5, 0.1, (50, 0.1))], self.encoder())
        assert record is not None
        value = json.loads(record.model_dump_json())
        assert CostRecord.model_validate_json(json.dumps(value)) == record
        assert CostRecord.model_validate_json(json.dumps({**value, "added later": 1})) == record
        for name in set(value) - {"format", "format_version"}:
            for damaged in (
                {key: value[key] for key in value if key != name},
                {**value, name: None},
            ):
                with pytest.raises(ValidationError, match=name):
                    CostRecord.model_validate_json(json.dumps(damaged))


def test_threads_that_read_at_once_know_of_it():
    with undisturbed() as first:
        assert first()
        with undisturbed() as second:
            assert not first()
            assert not second()
        assert not first(), "it was slowed down for a while"
    with undisturbed() as third:
        assert third()
