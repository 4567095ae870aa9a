"""Where the time goes: one encoder of each kind, all layers with mean pooling, by operator, beside
the machine's matrix product peak measured in the same run. The rate counts useful tokens alone:
2 FLOP for each parameter of the blocks and token, attention's own products not counted."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import alternate, gemm_peak, texts_of
from layerfuse import FrozenEncoder, extract

_CASES = (("minilm", "mr"), ("mpnet", "mr"), ("mpnet", "r8"), ("smollm2-135m", "r8"))
_SIZES = {"mr": 200, "r8": 60}
_KINDS = {
    "linear layers": ("_linear_pointwise", "addmm", "linear", "aten::mm"),
    "attention": ("scaled_dot", "softmax", "bmm", "baddbmm"),
    "activations": ("gelu", "silu", "tanh", "relu"),
    "norms": ("layer_norm", "rsqrt", "pow", "mean"),
    "copies": ("copy_", "aten::cat", "clone"),
}


def run() -> list[dict[str, Any]]:
    results = []
    for name, dataset in _CASES:
        texts = texts_of(dataset, _SIZES[dataset])
        if texts is None:
            continue
        encoder = FrozenEncoder.from_pretrained(name, max_length=256)
        tokens = sum(map(len, encoder.tokenize(texts).ids))

        def read(texts: list[str] = texts, encoder: FrozenEncoder = encoder) -> None:
            extract(texts, encoder)

        peaks = [gemm_peak(getattr(torch, encoder.dtype))]
        seconds = alternate({"read": read})["read"]
        peaks.append(gemm_peak(getattr(torch, encoder.dtype)))
        peak, median = statistics.fmean(peaks), statistics.median(seconds)
        blocks = encoder.layer_parameters[-1] - encoder.layer_parameters[0]
        rate = 2 * blocks * tokens / median
        shares = _shares(read)
        results.append(
            {
                "encoder": name,
                "dtype": encoder.dtype,
                "dataset": dataset,
                "texts": len(texts),
                "useful_tokens": tokens,
                "seconds": seconds,
                "useful_flops_per_s": rate,
                "gemm_peak_flops_per_s": peaks,
                "share_of_peak": rate / peak,
                "time_shares": shares,
            }
        )
        parts = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
        print(
            f"{name} on {dataset}: {median:.2f} s, {rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s "
            f"({100 * rate / peak:.0f} % of peak): {parts}",
            flush=True,
        )
    return results


def _shares(function: Any) -> dict[str, float]:
    """The share of operator time by kind, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        function()
    spent = dict.fromkeys([*_KINDS, "the rest"], 0.0)
    for event in found.key_averages():
        kind = next((k for k, names in _KINDS.items() if _any(names, event.key)), "the rest")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in sorted(spent.items(), key=lambda pair: -pair[1])}


def _any(names: tuple[str, ...], key: str) -> bool:
    return any(name in key for name in names)
