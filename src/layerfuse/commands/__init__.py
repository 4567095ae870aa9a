"""One plain function for each command; they return data and print nothing."""

from layerfuse.commands.comparing import compare
from layerfuse.commands.demo import demo
from layerfuse.commands.fitting import fit, profile
from layerfuse.commands.keeping import (
    audit_data,
    check_model,
    list_datasets,
    list_models,
    list_store,
    prune_store,
    pull_data,
    pull_model,
    verify_store,
)
from layerfuse.commands.labelling import curve
from layerfuse.commands.reporting import report
from layerfuse.commands.using import evaluate, predict, write_predictions

__all__ = [
    "audit_data",
    "check_model",
    "compare",
    "curve",
    "demo",
    "evaluate",
    "fit",
    "list_datasets",
    "list_models",
    "list_store",
    "predict",
    "profile",
    "prune_store",
    "pull_data",
    "pull_model",
    "report",
    "verify_store",
    "write_predictions",
]
