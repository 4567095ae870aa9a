"""Speed and memory on a GPU: reading, waiting, loading, and a whole fit."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.parts import (
    GIB,
    POOLINGS,
    TEXTS,
    Context,
    Notes,
    build_tokenizer,
    differences,
    in_memory,
    matrix_peak,
    random_texts,
    timed,
)
from layerfuse import FrozenEncoder, LayerFusionClassifier, extract, load_dataset
from layerfuse.data.download import is_pulled
from layerfuse.embeddings.jobs import (
    _BATCH_TOKENS,
    ShardJob,
    batch_overhead,
    plan_batches,
    read_shard,
    tokenize_shard,
)
from layerfuse.encoders.architecture import Batch, accepted, pad
from layerfuse.encoders.checks import check_encoder
from layerfuse.encoders.devices import has_int8
from layerfuse.progress import SILENT


def minilm(context: Context, out: dict[str, Any]) -> None:
    """Two data sets by a real encoder: reading against sentence-transformers, then a whole fit."""
    if context.minilm is None and not is_pulled("minilm"):
        out["note"] = "minilm is not on this machine"
        return
    for name in ("mr", "r8"):
        if not is_pulled(name):
            out[name] = {"note": "not on this machine"}
            continue
        out[name] = {}
        _read_and_fit(context, name, out[name])


def _read_and_fit(context: Context, dataset: str, out: dict[str, Any]) -> None:
    from benchmarks.peers import sentence_transformers

    encoder = FrozenEncoder.from_pretrained(
        context.minilm or "minilm", name="minilm", device=context.device, dtype=context.dtype
    )
    splits = load_dataset(dataset).splits
    rows = {
        name: slice(None, None, max(1, len(split.texts) // (context.sizes.minilm_rows or 10**9)))
        for name, split in splits.items()
    }
    X, y, X_test, y_test = (
        list(part[rows[name]])
        for name in ("train", "test")
        for part in (splits[name].texts, splits[name].labels)
    )
    texts = X + X_test
    n_tokens = sum(map(len, encoder.tokenize(texts).ids))
    out |= {"texts": len(texts), "tokens": n_tokens, "dtype": encoder.dtype, "times": {}}
    ways: dict[str, Callable[[], Any]] = {
        "all layers": lambda: extract(texts, encoder),
        "last layer": lambda: extract(texts, encoder, -1),
    }
    try:
        for size in (32, 256):
            peer = sentence_transformers(encoder, size)
            ways[f"sentence-transformers, batches of {size}"] = lambda p=peer: p(texts)
        ours = next(iter(extract(texts[:64], encoder, -1).values()))
        theirs = np.asarray(peer(texts[:64]), dtype=np.float64)
        out["cosine_to_sentence_transformers"] = float(cosines(ours, theirs).min())
    except ImportError as error:
        out["note"] = f"no sentence-transformers: {error}"
    extract(texts[:1000:10], encoder)  # kernels are loaded
    timed(context, ways, context.sizes.repeats, out["times"])
    for result in out["times"].values():
        result["texts_per_s"] = len(texts) / result["median_s"]
        result["tokens_per_s"] = n_tokens / result["median_s"]
    out["last_layer_ratios"] = {
        name: result["median_s"] / out["times"]["last layer"]["median_s"]
        for name, result in out["times"].items()
    }
    fresh = FrozenEncoder.from_pretrained(
        encoder.path, name="minilm", device=context.device, dtype=context.dtype
    )
    out["check"] = {check.name: [check.deviation, check.ok] for check in check_encoder(fresh)}
    context.check_time()
    started = time.perf_counter()
    classifier = LayerFusionClassifier(encoder, store=context.folder / f"store-{dataset}")
    classifier.fit(X, y)
    out["fit_s"] = time.perf_counter() - started
    out["fit_timings"] = dict(classifier.timings_)
    out["pipeline"] = [str(block) for block in classifier.fit_record_.search.result.plan.blocks]
    out["accuracy"] = float(np.mean(classifier.predict(X_test) == np.asarray(y_test)))
    started = time.perf_counter()
    baselines = classifier.fit_record_.run_baselines(X_test, classifier.extract(X_test))
    out["baselines_s"] = time.perf_counter() - started
    out["baselines"] = {
        baseline.name: float(
            np.mean(classifier.label_space_.decode(baseline.predicted) == np.asarray(y_test))
        )
        for baseline in baselines
        if baseline.predicted is not None
    }


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def llama_7b(context: Context, out: dict[str, Any]) -> None:
    """A model of Llama-2-7B's shape: ours against the plain loop and the bare forward passes."""
    _large(context, *context.sizes.shapes["llama"], out)
    _scale(context, out)


def qwen_7b(context: Context, out: dict[str, Any]) -> None:
    """A model of Qwen2.5-7B's shape, with a smaller vocabulary."""
    _large(context, *context.sizes.shapes["qwen"], out)


def _large(context: Context, family: str, shape: Mapping[str, int], out: dict[str, Any]) -> None:
    context.free_memory()
    started = time.perf_counter()
    encoder = in_memory(family, shape, context, context.dtype)
    context.synchronize()
    out["build_s"] = time.perf_counter() - started
    texts = random_texts(np.random.default_rng(0), context.sizes.texts, context.sizes.lengths)
    ids = encoder.tokenize(texts).ids
    lengths = [len(row) for row in ids]
    n_tokens, n_layers = sum(lengths), encoder.n_layers
    parameters = encoder.layer_parameters
    half = n_layers // 2
    width = shape["hidden_size"]
    peak = matrix_peak(context)
    out |= {
        "shape": dict(shape),
        "parameters": parameters[-1],
        "texts": len(texts),
        "tokens": n_tokens,
        "weights_gib": torch.cuda.memory_allocated() / GIB if context.on_gpu else None,
        "matrix_peak_flops": peak,
    }

    def flops(layers: int) -> float:
        """Products of weights, and causal attention."""
        weights = parameters[layers] - parameters[0]
        attention = 2 * width * sum(length**2 for length in lengths)
        return 2.0 * weights * n_tokens + layers * attention

    plan = plan_batches(lengths, _BATCH_TOKENS[encoder.kind], batch_overhead(encoder))
    out["batches"] = len(plan)
    out["padding_share"] = 1 - n_tokens / sum(len(rows) * lengths[rows[0]] for rows in plan)
    stack, architecture = encoder.stack, encoder.architecture

    def batched(rows: Sequence[int], masked: bool) -> Batch:
        texts = [ids[row] for row in rows]
        return pad(texts, 1, context.device, accepted(stack), masked=masked)

    @torch.inference_mode()
    def bare() -> list[torch.Tensor]:
        batches = (batched(rows, not architecture.traits.causal) for rows in plan)
        return [stack(input_ids=batch.ids, **batch.options)[0][:, 0].clone() for batch in batches]

    @torch.inference_mode()
    def plain(groups: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        pooled = []
        with _own_norms(stack):
            for rows in groups:
                batch = batched(rows, True)
                options = {**batch.options, "output_hidden_states": True}
                states = stack(input_ids=batch.ids, **options).hidden_states
                weights = batch.mask.to(context.device).unsqueeze(-1)
                means = [(state * weights).sum(1) / weights.sum(1) for state in states]
                pooled.append(torch.stack(means, dim=1).float().cpu())
        return pooled

    in_order = [range(start, min(start + 32, len(ids))) for start in range(0, len(ids), 32)]
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "all layers": (n_layers, lambda: extract(texts, encoder, "all", POOLINGS)),
        "last layer": (n_layers, lambda: extract(texts, encoder, -1, POOLINGS)),
        "half the layers": (half, lambda: extract(texts, encoder, range(half + 1), POOLINGS)),
        "plain loop, all layers, 32 texts": (n_layers, lambda: plain(in_order)),
        "bare passes over our batches": (n_layers, bare),
    }
    expected = plain([range(8)])[0].double().numpy()
    ours = encoder.read(ids[:8], "all", ("mean",))
    out["plain_difference"] = differences(
        ours, [expected[:, layer, None] for layer in range(n_layers + 1)]
    )[1]
    extract(texts[:64], encoder, "all", POOLINGS)  # loads the kernels
    out["times"] = {}
    try:
        ways_alone = {name: way for name, (_, way) in ways.items()}
        timed(context, ways_alone, context.sizes.repeats, out["times"])
    finally:
        for name, (layers, _) in ways.items():
            result = out["times"][name]
            if result["seconds"]:
                result["tokens_per_s"] = n_tokens / result["median_s"]
                result["model_flops"] = flops(layers) / result["median_s"]
                result["share_of_peak"] = result["model_flops"] / peak
    context.free_memory()


@contextlib.contextmanager
def _own_norms(stack: torch.nn.Module) -> Iterator[None]:
    """The model as transformers loads it."""
    fused = {
        module: vars(module).pop("forward")
        for module in stack.modules()
        if "forward" in vars(module)
    }
    try:
        yield
    finally:
        for module, forward in fused.items():
            module.forward = forward  # type: ignore[method-assign]


def _scale(context: Context, out: dict[str, Any]) -> None:
    """Tokens/s and memory of the same model by the most tokens of a batch."""
    encoder = in_memory(*context.sizes.shapes["llama"], context, context.dtype)
    texts = random_texts(np.random.default_rng(0), context.sizes.texts, context.sizes.lengths)
    n_tokens = sum(map(len, encoder.tokenize(texts).ids))
    out["by_batch_tokens"] = {}
    for budget in context.sizes.budgets:
        result: dict[str, Any] = {}
        notes = Notes()
        context.free_memory()
        encoder.batch_tokens = budget
        timed(
            context,
            {"all": lambda notes=notes: extract(texts, encoder, "all", POOLINGS, reporter=notes)},
            1,
            result,
        )
        out["by_batch_tokens"][str(budget)] = {
            "seconds": result["all"]["median_s"],
            "tokens_per_s": n_tokens / result["all"]["median_s"],
            "peak_gib": result["all"]["peak_gib"],
            "halvings": sum("out of memory" in line for line in notes.lines),
        }


def waits(context: Context, out: dict[str, Any]) -> None:
    """Where the host waits for the GPU while a shard is read, and how busy the GPU is."""
    for name in ("minilm", "llama"):
        family, shape = context.sizes.shapes[name]
        if name == "llama":  # a few of its blocks are enough
            shape = {**shape, "num_hidden_layers": 4}
        encoder = in_memory(family, shape, context, context.dtype)
        texts = random_texts(
            np.random.default_rng(1), context.sizes.waits_texts, context.sizes.lengths
        )
        keys = tuple(
            (layer, pooling) for pooling in POOLINGS for layer in range(encoder.n_layers + 1)
        )
        budget = _BATCH_TOKENS[encoder.kind]
        job = ShardJob(np.arange(len(texts)), tuple(texts), keys, budget)
        tokens, tokenize_s = tokenize_shard(job, encoder)

        def read(
            job: ShardJob = job, tokens: Any = tokens, encoder: FrozenEncoder = encoder
        ) -> Any:
            return read_shard(job, tokens, 0.0, encoder, lambda count: None, SILENT)

        n_batches = len(read().cost.batches)
        times: dict[str, Any] = {}
        timed(context, {"read": read}, context.sizes.repeats, times)
        wall = times["read"]["median_s"]
        out[name] = {
            "texts": len(texts),
            "batches": n_batches,
            "seconds": wall,
            "tokenize_s": tokenize_s,
            "waits_at": _waiting_lines(context, read),
            **_profiled(context, read, n_batches, wall),
        }
        context.check_time()
        many = random_texts(
            np.random.default_rng(2), 3 * context.sizes.waits_texts, context.sizes.lengths
        )
        whole = partial(extract, many, encoder, "all", POOLINGS)
        timed(context, {"extract": whole}, context.sizes.repeats, times)
        found = _profiled(context, whole, 1, times["extract"]["median_s"])
        out[name]["extract"] = {
            "texts": len(many),
            "seconds": times["extract"]["median_s"],
            "gpu_busy_share": found["gpu_busy_share"],
        }


def _waiting_lines(context: Context, read: Callable[[], Any]) -> dict[str, int]:
    """Lines of Python that make the host wait, by torch's own count."""
    if not context.on_gpu:
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            read()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}" for warning in caught
    )
    return dict(lines.most_common(20))


def _profiled(
    context: Context, read: Callable[[], Any], n_batches: int, wall: float
) -> dict[str, Any]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.on_gpu else [])]
    with profile(activities=activities) as profiler:
        read()
        context.synchronize()
    events = profiler.key_averages()
    watched = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
    counts = {
        event.key: event.count / n_batches
        for event in events
        if event.key in watched or event.key.startswith(("cuda", "Memcpy", "Memset"))
    }
    on_device = [event for event in events if event.device_type != DeviceType.CPU]
    busy = sum(event.self_device_time_total for event in on_device) / 1e6
    longest = sorted(on_device, key=lambda event: -event.self_device_time_total)[:12]
    return {
        "per_batch": counts,
        "gpu_busy_s": busy,
        "gpu_busy_share": busy / wall,
        "longest_kernels_ms": {
            event.key[:100]: event.self_device_time_total / 1e3 for event in longest
        },
    }


def loading(context: Context, out: dict[str, Any]) -> None:
    """Some blocks of the 7B shape from a file in memory to the device."""
    shared = Path("/dev/shm")  # noqa: S108  # where it exists, files there are in memory
    family, shape = context.sizes.shapes["llama"]
    shape = {**shape, "num_hidden_layers": context.sizes.loading_layers}
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        made = in_memory(family, shape, context, context.dtype)
        made.stack.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        made.release()
        context.free_memory()
        n_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        started = time.perf_counter()
        encoder = FrozenEncoder.from_pretrained(folder, device=context.device, dtype=context.dtype)
        out |= {"gb": n_bytes / 1e9, "open_s": time.perf_counter() - started}
        started = time.perf_counter()
        encoder.tokenize(["film"])
        context.synchronize()
        out["load_s"] = time.perf_counter() - started
        out["load_gb_per_s"] = out["gb"] / out["load_s"]


def quantized(context: Context, out: dict[str, Any]) -> None:
    """Weights in 8 and 4 bits."""
    if not context.on_gpu or importlib.util.find_spec("bitsandbytes") is None:
        out["note"] = "needs a GPU and bitsandbytes"
        return
    folder = context.folder / "quantized"
    shape = {**context.sizes.memory_model, "intermediate_size": 1024}
    made = in_memory("llama", shape, context, "bfloat16")
    made.stack.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    *_, exact = extract(TEXTS, made).values()
    for dtype in ("int8", "nf4"):
        encoder = FrozenEncoder.from_pretrained(folder, device=context.device, dtype=dtype)
        *_, found = extract(TEXTS, encoder, [0, -1]).values()
        out[dtype] = {
            "cosine": float(cosines(found, exact).min()),
            "bytes_per_parameter": encoder.bytes_per_parameter,
        }


def cpu_int8(context: Context, out: dict[str, Any]) -> None:
    """All layers by the CPU beside the GPU, which may have AMX: int8 against bfloat16."""
    if not has_int8("cpu"):
        out["note"] = "this CPU does not multiply 8 bits"
        return
    on_cpu = replace(context, device="cpu")
    rng = np.random.default_rng(0)
    texts = {
        "short": random_texts(rng, context.sizes.texts // 2, (8, 48)),
        "long": random_texts(rng, context.sizes.texts // 16, context.sizes.lengths),
    }
    for shape in ("minilm", "mpnet"):
        family, sizes = context.sizes.shapes[shape]
        folder = context.folder / shape
        made = in_memory(family, sizes, on_cpu, "float32")
        made.stack.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        encoders = {
            dtype: FrozenEncoder.from_pretrained(folder, device="cpu", dtype=dtype)
            for dtype in ("int8", "bfloat16")
        }
        for encoder in encoders.values():
            extract(TEXTS, encoder)
        before = torch.get_num_threads()
        for threads in sorted({2, before}):
            torch.set_num_threads(threads)
            try:
                for kind, rows in texts.items():
                    out[f"{shape}, {kind} texts, {threads} threads"] = {"times": (times := {})}
                    ways = {dtype: partial(extract, rows, encoders[dtype]) for dtype in encoders}
                    timed(on_cpu, ways, context.sizes.repeats, times)
                    n_tokens = sum(map(len, encoders["int8"].tokenize(rows).ids))
                    for result in times.values():
                        result["tokens_per_s"] = n_tokens / result["median_s"]
            finally:
                torch.set_num_threads(before)
