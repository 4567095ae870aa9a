"""Every supported family against a plain loop over Hugging Face's own hidden states."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf

from families import FAMILIES, N_LAYERS, save_model
from layerfuse import FrozenEncoder
from layerfuse import pooling as poolings

pytestmark = pytest.mark.slow

TEXTS = [
    "the film is good",
    "awful",
    "a very very great story of the market and the bank and the ship",
    "oil price news",
    "not bad",
]
TOLERANCE = 1e-5
POOLINGS = tuple(poolings.POOLINGS)
DIM = 32
NORM_ONLY = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "t5", "modernbert")
NORM_AND_BIAS = ("falcon", "gpt2", "gpt_neox")
NOTHING = ("bert", "roberta", "mpnet", "deberta-v2", "distilbert")
AFTER_BLOCKS = {
    **dict.fromkeys(NOTHING, 0),
    **dict.fromkeys(NORM_ONLY, DIM),
    **dict.fromkeys(NORM_AND_BIAS, 2 * DIM),
    "opt": 2 * DIM + 16 * DIM,  # and a projection to the size of its token embeddings
}


def plain_pool(states: torch.Tensor, pooling: str) -> npt.NDArray[np.float64]:
    """One text, no padding, one pooling, in float64: (tokens, dim) to (dim,)."""
    rows = states.double().numpy()
    if pooling == "mean":
        return rows.mean(axis=0)
    if pooling == "cls":
        return rows[0]
    if pooling == "last":
        return rows[-1]
    if pooling == "max":
        return rows.max(axis=0)
    if pooling == "weighted_mean":
        return np.average(rows, axis=0, weights=np.arange(1, len(rows) + 1))
    assert pooling == "mean_no_sink"
    return rows[1:].mean(axis=0) if len(rows) > 1 else rows[0]


def plain_loop(folder: Path, ids: list[list[int]]) -> npt.NDArray[np.object_]:
    """What a careful person would write: one text at a time, all hidden states.

    Returns an object array of shape (layers, poolings, texts), each a vector.
    """
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    expected = np.empty((N_LAYERS + 1, len(POOLINGS), len(ids)), dtype=object)
    with torch.inference_mode():
        for row, tokens in enumerate(ids):
            output = model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
            assert len(output.hidden_states) == N_LAYERS + 1
            for layer, states in enumerate(output.hidden_states):
                for place, pooling in enumerate(POOLINGS):
                    expected[layer, place, row] = plain_pool(states[0], pooling)
    return expected


def assert_close(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.object_]) -> None:
    """(texts, poolings, dim) against (poolings, texts) vectors."""
    wanted = np.stack([np.stack(list(row)) for row in expected], axis=1)
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=TOLERANCE * scale)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


def open_encoder(folder: Path) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.mark.slow
def test_every_layer_and_pooling_equals_the_plain_loop(model_folder: Path) -> None:
    encoder = open_encoder(model_folder)
    ids = encoder.tokenize(TEXTS).ids
    assert len({len(row) for row in ids}) > 2, "the batch must need padding"
    expected = plain_loop(model_folder, ids)
    actual = encoder.read(ids, "all", POOLINGS)
    assert sorted(actual) == list(range(N_LAYERS + 1))
    for layer, array in actual.items():
        assert_close(array, expected[layer])


def test_a_truncated_encoder_equals_the_full_one(model_folder: Path) -> None:
    full = open_encoder(model_folder)
    ids = full.tokenize(TEXTS).ids
    every = full.read(ids, "all", POOLINGS)
    for top in range(N_LAYERS + 1):
        cut = open_encoder(model_folder).truncate(top)
        some = cut.read(ids, range(top + 1), POOLINGS)
        assert sorted(some) == list(range(top + 1))
        for layer, array in some.items():
            np.testing.assert_array_equal(array, every[layer])


def test_batch_mates_and_order_change_nothing(model_folder: Path) -> None:
    encoder = open_encoder(model_folder)
    ids = encoder.tokenize(TEXTS).ids
    together = encoder.read(ids, "all", POOLINGS)
    backwards = encoder.read(ids[::-1], "all", POOLINGS)
    for layer, array in together.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(backwards[layer][::-1], array, rtol=0, atol=TOLERANCE * scale)
        for row, tokens in enumerate(ids):
            alone = encoder.read([tokens], [layer], POOLINGS)[layer]
            np.testing.assert_allclose(alone[0], array[row], rtol=0, atol=TOLERANCE * scale)


def test_reading_some_layers_runs_no_block_above_them(model_folder: Path) -> None:
    encoder = open_encoder(model_folder)
    ids = encoder.tokenize(TEXTS).ids
    architecture = encoder.architecture
    assert architecture.blocks is not None, "the family's blocks must be found"
    ran: list[int] = []
    for number, block in enumerate(architecture.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    encoder.read(ids, [0, 2], ("mean",))
    assert ran == [1, 2]


def test_parameters_up_to_each_layer(model_folder: Path) -> None:
    """All of the stack's at the last layer; below, those that a cut leaves.

    A cut in place keeps the next block, unused, and the modules after the last block.
    """
    encoder = open_encoder(model_folder)
    counts = encoder.layer_parameters
    body = hf.AutoModel.from_pretrained(model_folder)
    body = body.get_encoder() if body.config.is_encoder_decoder else body
    if hasattr(body, "pooler"):
        body.pooler = None
    assert len(counts) == N_LAYERS + 1
    assert counts[-1] == sum(weight.numel() for weight in body.parameters())
    assert all(low < high for low, high in itertools.pairwise(counts))
    blocks = encoder.architecture.blocks
    assert blocks is not None
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    after = counts[-1] - counts[-2] - sizes[-1]
    assert after == AFTER_BLOCKS[encoder.stack.config.model_type]
    for layer in range(N_LAYERS):
        cut = open_encoder(model_folder).truncate(layer)
        held = sum(weight.numel() for weight in cut.stack.parameters())
        assert held == counts[layer] + sizes[layer] + after
        assert cut.layer_parameters == counts
