"""The study: what layers and fusions bring on several datasets, and what they cost."""

from layerfuse.study.reproducing import reproduce
from layerfuse.study.settings import PARTS, PRESETS, StudySettings, make_settings

__all__ = ["PARTS", "PRESETS", "StudySettings", "make_settings", "reproduce"]
