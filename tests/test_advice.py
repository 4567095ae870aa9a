"""``fit --accept-advice``: what is saved is the single block that the verdict recommends."""

from __future__ import annotations

from pathlib import Path

import pytest

import layerfuse
from commandline import rows, succeed, write_csv
from families import TinyModels
from layerfuse.report.run_report import read_run_report

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("head", ["ridge", "balanced_ridge"])
def test_the_simpler_block_is_saved_and_measured(tiny: TinyModels, tmp_path: Path, head: str):
    table = write_csv(tmp_path / "train.csv", rows(120))
    few = ["-e", f"bert={tiny('bert')}", "-e", f"gpt={tiny('gpt2')}", "--cv", 3, "--no-report"]
    few += ["--selection", "top_k", "--max-blocks", 3, "--store", tmp_path / "store"]
    few += ["--head", head]
    succeed("fit", table, *few, "--out", tmp_path / "fused")
    done = succeed("fit", table, *few, "--accept-advice", "--out", tmp_path / "simple")
    fused, simple = (read_run_report(tmp_path / name) for name in ("fused", "simple"))
    assert len(fused.selection.blocks) == 3
    assert fused.verdict.recommended != "pipeline"
    (block,) = simple.selection.blocks
    kind = {"last": "last_layer", "best": "best_block"}[simple.selection.method]
    advised = [one for one in fused.baselines if (one.name, one.blocks) == (kind, (block,))]
    assert len(advised) == 1
    assert simple.cv.accuracy == advised[0].cv.accuracy  # measured as the baseline was
    assert simple.cv.accuracy.value >= fused.cv.accuracy.value or advised[0].cv.gain.low <= 0
    assert f"{block} alone" in done.err
    assert simple.selection.head == head
    assert layerfuse.load(tmp_path / "simple").model_.blocks == (block,)
    assert simple.settings.accept_advice


def test_without_a_simpler_block_the_pipeline_stays(tiny: TinyModels, tmp_path: Path):
    table = write_csv(tmp_path / "train.csv", rows(60))
    few = ["-e", f"bert={tiny('bert')}", "--layers", 2, "--cv", 2, "--no-report"]
    few += ["--store", tmp_path / "store", "--accept-advice", "--selection", "greedy"]
    done = succeed("fit", table, *few, "--out", tmp_path / "run")
    assert "the pipeline stays" in done.err
    assert read_run_report(tmp_path / "run").selection.method == "greedy"
