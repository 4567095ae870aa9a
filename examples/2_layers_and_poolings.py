"""Read layers once, then measure, choose and compare them without training a classifier."""

from __future__ import annotations

from itertools import product

import layerfuse

ANIMALS = ["dog", "cat", "horse", "fox", "goose", "mouse"]
PEOPLE = ["girl", "baker", "teacher", "farmer", "nurse", "king"]
VERBS = ["saw", "followed", "woke"]


def main() -> None:
    # The same words in both classes: only their order tells who does it to whom.
    pairs = list(product(ANIMALS, VERBS, PEOPLE))
    texts = [f"the {animal} {verb} the {person}" for animal, verb, person in pairs]
    texts += [f"the {person} {verb} the {animal}" for animal, verb, person in pairs]
    labels = ["animal"] * len(pairs) + ["person"] * len(pairs)

    encoder = layerfuse.FrozenEncoder.from_pretrained("minilm")
    blocks = layerfuse.extract(texts, encoder, layers="all", pooling=("mean", "cls", "max"))
    print(f"{len(blocks)} blocks of {encoder.dim} dimensions in one pass over {len(texts)} texts")

    scores = layerfuse.score_blocks(blocks, labels)
    for score in scores.ranking[:5]:
        print(f"{score.block!s:16} accuracy {score.accuracy:.3f}, loss {score.loss:.4f}")

    selection = layerfuse.select_blocks(blocks, labels, max_blocks=3)
    for block, gain in zip(selection.blocks, selection.gains_, strict=True):
        print(f"chosen {block}: loss less {gain:.4f}")

    best = layerfuse.compare(blocks, labels, pairs="blocks").best
    print(f"most gained by {best.a} and {best.b}: loss less {best.loss_gain:.4f}")


if __name__ == "__main__":
    main()
