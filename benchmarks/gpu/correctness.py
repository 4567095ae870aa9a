"""Values on a GPU: against plain loops, in any batch, from any thread, in too little memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from benchmarks.gpu.parts import (
    GIB,
    POOLINGS,
    TEXTS,
    Context,
    Notes,
    differences,
    in_memory,
    random_texts,
    save_model,
)
from layerfuse import FrozenEncoder, extract
from layerfuse.errors import LayerfuseError, NoMemoryError

TOLERANCE = 1e-4  # in float32, relative to a layer's largest value


def plain_states(model: Any, ids: Sequence[Sequence[int]], device: str) -> list[np.ndarray]:
    """Texts one by one, unpadded: of each layer (n_texts, n_poolings, dim) in float64."""
    layers: list[list[np.ndarray]] = []
    with torch.inference_mode():
        for row in ids:
            states = model(
                input_ids=torch.tensor([list(row)], device=device), output_hidden_states=True
            ).hidden_states
            pooled = [
                np.stack([values.mean(axis=0), values[-1]])
                for values in (state[0].double().cpu().numpy() for state in states)
            ]
            layers.append(pooled)  # type: ignore[arg-type]
    return [np.stack(list(rows)) for rows in zip(*layers, strict=True)]


def open_plain(folder: Path, dtype: str, device: str) -> Any:
    model = hf.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


def parity(context: Context, out: dict[str, Any]) -> None:
    """Every family in every dtype against a plain loop, and float32 against the CPU's."""
    out |= {"cases": {}, "failed": []}
    for family in context.sizes.families:
        folder = save_model(family, context.folder / family)
        cpu = FrozenEncoder.from_pretrained(folder, device="cpu", dtype="float32")
        ids = cpu.tokenize(TEXTS).ids
        on_cpu = cpu.read(ids, "all", POOLINGS)
        exact = plain_states(open_plain(folder, "float32", "cpu"), ids, "cpu")
        for dtype in ("float32", "bfloat16", "float16"):
            context.check_time()
            case: dict[str, Any] = {}
            name = f"{family} {dtype}"
            out["cases"][name] = case
            try:
                case |= _parity_of(context, folder, dtype, ids, on_cpu, exact)
            except Exception as error:  # the next family tells something too
                case |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}
            if not case["ok"]:
                out["failed"].append(name)
    out["largest_relative"] = {
        dtype: max(
            case.get("relative", 0.0) for name, case in out["cases"].items() if name.endswith(dtype)
        )
        for dtype in (" float32", " bfloat16", " float16")
    }


def _parity_of(
    context: Context,
    folder: Path,
    dtype: str,
    ids: Sequence[Sequence[int]],
    on_cpu: Mapping[int, np.ndarray],
    exact: Sequence[np.ndarray],
) -> dict[str, Any]:
    plain = plain_states(open_plain(folder, dtype, context.device), ids, context.device)
    encoder = FrozenEncoder.from_pretrained(folder, device=context.device, dtype=dtype)
    try:
        ours = encoder.read(ids, "all", POOLINGS)
    except LayerfuseError as error:
        finite = all(np.isfinite(states).all() for states in plain)
        return {"ok": not finite, "error": str(error), "plain_is_finite": finite}
    absolute, relative = differences(ours, plain)
    to_exact, plain_to_exact = (differences(states, exact)[1] for states in (ours, plain))
    case = {
        "absolute": absolute,
        "relative": relative,
        "ours_to_float32": to_exact,
        "plain_to_float32": plain_to_exact,
        "stops_early": encoder.stops_early,
    }
    if dtype == "float32":
        case["relative_to_cpu"] = differences(ours, list(on_cpu.values()))[1]
        case["ok"] = max(relative, case["relative_to_cpu"]) <= TOLERANCE
    else:  # as near to the truth as the plain loop, or nearly so
        case["ok"] = to_exact <= 2 * plain_to_exact + TOLERANCE
    return case


def batches(context: Context, out: dict[str, Any]) -> None:
    """The same texts alone, in a batch of mixed lengths, and reversed."""
    out |= {"families": {}, "failed": []}
    for family in context.sizes.families:
        context.check_time()
        folder = save_model(family, context.folder / family)
        encoder = FrozenEncoder.from_pretrained(folder, device=context.device, dtype="float32")
        ids = encoder.tokenize(TEXTS).ids
        together = list(encoder.read(ids, "all", POOLINGS).values())
        backwards = encoder.read(ids[::-1], "all", POOLINGS)
        alone = [encoder.read([row], "all", POOLINGS) for row in ids]
        case = {
            "alone": differences(
                [np.concatenate([one[layer] for one in alone]) for layer in range(len(together))],
                together,
            )[1],
            "reversed": differences({k: v[::-1] for k, v in backwards.items()}, together)[1],
        }
        out["families"][family] = case
        if max(case.values()) > TOLERANCE:
            out["failed"].append(family)
    out["largest"] = max(max(case.values()) for case in out["families"].values())


def threads(context: Context, out: dict[str, Any]) -> None:
    """Eight threads share an encoder: reads of batches, and whole extractions."""
    rng = np.random.default_rng(0)
    for family in ("bert", "llama"):
        context.check_time()
        folder = save_model(family, context.folder / family)
        encoder = FrozenEncoder.from_pretrained(folder, device=context.device, dtype="float32")
        n_reads = context.sizes.thread_reads
        texts = random_texts(rng, 3 * n_reads, (4, 40))
        jobs = [texts[3 * number : 3 * number + 3] for number in range(n_reads)]

        expected = [read_or_error(encoder, job) for job in jobs]
        fresh = FrozenEncoder.from_pretrained(folder, device=context.device, dtype="float32")
        with ThreadPoolExecutor(8) as executor:  # the first ones load it, all at once
            found = list(executor.map(partial(read_or_error, fresh), jobs))
            parts = [texts[number::8] for number in range(8)]
            views = list(executor.map(lambda part, e=fresh: extract(part, e, -1), parts))
        failed = [result for result in found if isinstance(result, Exception)]
        sound = [
            (a, b) for a, b in zip(found, expected, strict=True) if not isinstance(a, Exception)
        ]
        apart = [differences(a, list(b.values()))[1] for a, b in sound]
        whole = next(iter(extract(texts, encoder, -1).values()))
        out[family] = {
            "reads": n_reads,
            "failed": len(failed),
            "errors": sorted({repr(error)[:200] for error in failed}),
            "wrong": sum(value > TOLERANCE for value in apart),
            "not_bitwise_equal": sum(value > 0 for value in apart),
            "largest": max(apart, default=None),
            "extract_largest": max(
                float(np.abs(next(iter(view.values())) - whole[number::8]).max())
                for number, view in enumerate(views)
            ),
        }
    out["failed"] = [
        name for name in ("bert", "llama") if out[name]["failed"] or out[name]["wrong"]
    ]


def read_or_error(encoder: FrozenEncoder, texts: Sequence[str]) -> Any:
    try:
        return encoder.read(encoder.tokenize(texts).ids, "all", POOLINGS)
    except Exception as error:  # it is counted
        return error


def memory(context: Context, out: dict[str, Any]) -> None:
    """Too little memory: smaller batches, the same values, an error that says so, and recovery."""
    sizes = context.sizes
    if not context.on_gpu:
        out["note"] = "memory is not limited on a CPU; the calls are made all the same"
    texts = random_texts(np.random.default_rng(0), sizes.memory_texts, (200, 256))
    encoder = in_memory("llama", sizes.memory_model, context, "float32", max_length=600)
    few = texts[:32]
    expected = extract(few, encoder, pooling=POOLINGS)
    with limited(context, sizes.memory_gib):
        notes, started = Notes(), time.perf_counter()
        encoder.batch_tokens = 10**7
        view = extract(texts, encoder, -1, reporter=notes)
        halvings = [line for line in notes.lines if "out of memory" in line]
        out["halving"] = {
            "seconds": time.perf_counter() - started,
            "halvings": len(halvings),
            "last": halvings[-1] if halvings else None,
            "peak_gib": context.peak_gib(),
        }
        rows = next(iter(view.values()))[: len(few)]
        last = next(iter(extract(few, encoder, -1).values()))
        out["halving"]["largest_difference"] = float(np.abs(rows - last).max())
    context.check_time()
    with limited(context, 0.008):
        long = " ".join(["film"] * 590)
        out["one_text"] = attempt(lambda: extract([long], encoder, -1))
        out["one_text_again"] = attempt(lambda: extract([long, "film"], encoder, -1))
    again = extract(few, encoder, pooling=POOLINGS)
    out["largest_difference_afterwards"] = max(
        float(np.abs(again[block] - array).max()) for block, array in expected.items()
    )
    folder = save_model("llama", context.folder / "memory-load")
    del view, rows, expected, again
    with limited(context, 0.0):
        small = FrozenEncoder.from_pretrained(folder, device=context.device, dtype="float32")
        out["loading"] = attempt(lambda: small.tokenize(["film"]))
    out["loading_afterwards"] = attempt(lambda: small.tokenize(["film"]))
    if context.on_gpu:
        wanted = {
            "halved": out["halving"]["halvings"] > 0,
            "one text: NoMemoryError": out["one_text"].startswith(NoMemoryError.__name__),
            "afterwards": out["largest_difference_afterwards"] < 1e-3,
            "equal values": out["halving"]["largest_difference"] < 1e-3,
        }
        out["failed"] = [name for name, met in wanted.items() if not met]


@contextlib.contextmanager
def limited(context: Context, gib: float) -> Iterator[None]:
    """At most so much GPU memory for torch beside what it holds."""
    if not context.on_gpu:
        yield
        return
    torch.cuda.synchronize()
    context.free_memory()
    context.reset_peak()
    limit = torch.cuda.memory_reserved() + gib * GIB
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def attempt(function: Callable[[], Any]) -> str:
    """``"fine"``, or the error and its message."""
    try:
        function()
    except Exception as error:  # that is what is asked
        return f"{type(error).__name__}: {error}"[:400]
    return "fine"
