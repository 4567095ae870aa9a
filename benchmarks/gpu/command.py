"""A GPU, from correctness to speed, in one command of seven minutes that needs no network:
``python -m benchmarks gpu``; ``--device cpu --tiny`` tries the code.

Each section stands alone: one that fails or runs out of its time leaves its record, and the next
one starts. The file of results is written again after each."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from benchmarks.common import RESULTS, described
from benchmarks.gpu.correctness import batches, memory, parity, threads
from benchmarks.gpu.parts import (
    FULL,
    GIB,
    TINY,
    Context,
    OutOfTimeError,
)
from benchmarks.gpu.speed import cpu_int8, llama_7b, loading, minilm, quantized, qwen_7b, waits

SECTIONS: dict[str, tuple[Callable[[Context, dict[str, Any]], None], float]] = {
    "parity": (parity, 100),
    "batches": (batches, 30),
    "threads": (threads, 30),
    "memory": (memory, 40),
    "minilm": (minilm, 120),
    "llama_7b": (llama_7b, 130),
    "waits": (waits, 40),
    "loading": (loading, 30),
    "quantized": (quantized, 20),
    "qwen_7b": (qwen_7b, 70),
    "cpu_int8": (cpu_int8, 90),
}
"""Sections in their order, each with its seconds on a GPU."""


def machine(device: str) -> dict[str, Any]:
    """The card and what computes on it."""
    facts: dict[str, Any] = {
        "section": "machine",
        "ok": True,
        "device": device,
        "torch": torch.__version__,
        "transformers": hf.__version__,
        "cuda": torch.version.cuda,
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(0)
        facts |= {
            "card": card.name,
            "memory_gib": card.total_memory / GIB,
            "multiprocessors": card.multi_processor_count,
            "capability": [card.major, card.minor],
        }
    return facts


def run(
    device: str = "cuda",
    *,
    tiny: bool = False,
    seconds: float = 420,
    minilm_folder: str | None = None,
    only: Sequence[str] | None = None,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Records of all sections; with ``out`` the file is written after each."""
    hf.utils.logging.disable_progress_bar()
    started = time.perf_counter()
    records = [machine(device)]
    print(json.dumps(records[0]), flush=True)

    def write() -> None:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            value = described("gpu", records)
            out.write_text(json.dumps(value, indent=2, default=float) + "\n", encoding="utf-8")

    faulthandler.dump_traceback_later(seconds + 60)  # what hangs is seen
    try:
        for name, (section, budget) in SECTIONS.items():
            if only is None or name in only:
                left = seconds - (time.perf_counter() - started)
                context = partial(Context, device, TINY if tiny else FULL, minilm=minilm_folder)
                records.append(_record(name, section, context, min(budget, left)))
                write()
    finally:
        faulthandler.cancel_dump_traceback_later()
    records[0]["tf32_unchanged"] = machine(device)["tf32"] == records[0]["tf32"]
    records[0]["seconds"] = time.perf_counter() - started
    write()
    print("\n".join(summary(records)), flush=True)
    return records


def _record(
    name: str,
    section: Callable[[Context, dict[str, Any]], None],
    context_in: Callable[..., Context],
    budget: float,
) -> dict[str, Any]:
    record: dict[str, Any] = {"section": name, "ok": False, "seconds": 0.0, "results": {}}
    if budget < 5:
        record |= {"ok": None, "note": "skipped: the time is used up"}
        print(f"{name}: skipped", flush=True)
        return record
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        context = context_in(folder=Path(folder), deadline=started + budget)
        try:
            section(context, record["results"])
            record["ok"] = not record["results"].get("failed")
        except OutOfTimeError:
            record |= {
                "ok": not record["results"].get("failed"),
                "note": "cut: its time is used up",
            }
        except Exception:  # the sections after it are worth their time
            record["error"] = traceback.format_exc()
            print(record["error"], flush=True)
        if context.on_gpu:
            with contextlib.suppress(Exception):
                context.free_memory()
                record["allocated_gib_afterwards"] = torch.cuda.memory_allocated() / GIB
    record["seconds"] = time.perf_counter() - started
    print(f"{name}: {'ok' if record['ok'] else 'FAILED'}, {record['seconds']:.1f} s", flush=True)
    return record


def summary(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short table of all sections."""
    lines = []
    for record in records:
        results = record.get("results", {})
        state = {True: "ok", False: "FAILED", None: "skipped"}[record["ok"]]
        note = record.get("note") or results.get("note") or ""
        seconds = record.get("seconds", 0.0)
        lines.append(f"{record['section']:<10} {state:<8} {seconds:6.1f} s  {note}")
        if results.get("failed"):
            lines.append(f"    failed: {', '.join(results['failed'])}")
        if "error" in record:
            lines.append(f"    {record['error'].strip().splitlines()[-1][:200]}")
        for name, part in [("", results), *results.items()]:
            if isinstance(part, dict):
                lines += _times(f"{name}: " if name else "", part)
        if "largest_relative" in results:
            lines.append(f"    {results['largest_relative']}")
        for budget, part in results.get("by_batch_tokens", {}).items():
            lines.append(f"    batches of {budget} tokens: {part['tokens_per_s']:,.0f} tokens/s, "
                         f"{part['peak_gib'] or 0:.1f} GiB")  # fmt: skip
        for name, part in results.items():
            if isinstance(part, dict) and "gpu_busy_share" in part:
                lines.append(f"    {name}: GPU busy {part['gpu_busy_share']:.0%} of "
                             f"{part['seconds']:.3f} s (extract "
                             f"{part.get('extract', {}).get('gpu_busy_share', 0):.0%}); "
                             f"waits at {part['waits_at']}")  # fmt: skip
            if isinstance(part, dict) and "accuracy" in part:
                last = part.get("baselines", {}).get("last_layer", 0.0)
                lines.append(
                    f"    {name}: fit {part['fit_s']:.1f} s, accuracy {part['accuracy']:.4f}, "
                    f"last layer {last:.4f}"
                )
    return lines


def _times(prefix: str, part: Mapping[str, Any]) -> list[str]:
    lines = []
    for way, result in part.get("times", {}).items():
        if result.get("seconds"):
            share = result.get("share_of_peak")
            lines.append(
                f"    {prefix}{way}: {result['median_s']:.3f} s, "
                f"{result.get('tokens_per_s', 0):,.0f} tokens/s"
                + (f", {share:.0%} of peak" if share else "")
                + (f", {result['peak_gib']:.1f} GiB" if result["peak_gib"] else "")
            )
    return lines


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, or cpu with --tiny")
    add("--tiny", action="store_true", help="sizes that only try the code")
    add("--seconds", type=float, default=420, help="sections that would begin later are skipped")
    add("--minilm", help="the folder of all-MiniLM-L6-v2, where the cache has none")
    add("--only", nargs="+", choices=SECTIONS, help="just these sections")
    add("--out", type=Path, default=RESULTS / "gpu.json", help="the file of results")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu --tiny tries the code")
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU only --tiny sizes end in time")
    records = run(
        options.device,
        tiny=options.tiny,
        seconds=options.seconds,
        minilm_folder=options.minilm,
        only=options.only,
        out=options.out,
    )
    return int(any(record["ok"] is False for record in records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
