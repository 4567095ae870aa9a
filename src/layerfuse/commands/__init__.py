"""One plain function for each command; they return data and print nothing."""

from layerfuse.commands.analyze import compare, curve
from layerfuse.commands.assets import (
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
from layerfuse.commands.fit import demo, fit, profile
from layerfuse.commands.predict import evaluate, predict, write_predictions
from layerfuse.commands.report import report

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
