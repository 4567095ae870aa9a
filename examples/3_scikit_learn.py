"""A search over a pipeline, with embeddings that are computed once and kept."""

from __future__ import annotations

import tempfile

from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import layerfuse

PRAISE = ["a wonderful {}", "the {} moved me", "I would see this {} again", "a {} full of life"]
BLAME = ["a dull {}", "the {} bored me", "nobody needs this {}", "a {} without an idea"]
THINGS = ["film", "play", "concert", "book", "exhibition", "series", "opera", "documentary"]


def shorten(texts: list[str]) -> list[str]:
    return [text[:100] for text in texts]


def main() -> None:
    texts = [frame.format(thing) for frame in PRAISE + BLAME for thing in THINGS]
    labels = [1] * len(PRAISE) * len(THINGS) + [0] * len(BLAME) * len(THINGS)
    known, held, y, y_held = train_test_split(texts, labels, stratify=labels, random_state=0)
    with tempfile.TemporaryDirectory() as store:
        pipeline = Pipeline(
            [
                ("shorten", FunctionTransformer(shorten)),
                ("fuse", layerfuse.LayerFusionClassifier(cv=2, fusion="concat", store=store)),
            ]
        )
        settings = {"fuse__max_blocks": [1, 3], "fuse__head": ["ridge", "logistic"]}
        search = GridSearchCV(pipeline, settings, cv=2).fit(known, y)
        print(search.best_params_)
        print(
            f"cross-validated {search.best_score_:.3f}, held out {search.score(held, y_held):.3f}"
        )


if __name__ == "__main__":
    main()
