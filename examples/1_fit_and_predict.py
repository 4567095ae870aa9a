"""Train a classifier on two lists, see what was chosen, save it, load it, predict."""

from __future__ import annotations

import layerfuse

SPORT = """a late goal decided the match
the home side lost in extra time
she broke her own record over 400 metres
the coach was dismissed after three defeats
rain stopped play in the second set
the keeper saved two penalties
he will miss the season with a torn muscle
the crowd booed the referee
the relay team was faster than ever
a young rider won the mountain stage
the champions drew again
they bought a striker from the second division""".splitlines()
TRADE = """exports of wheat rose by a tenth
the price of copper fell again
a tax on imported steel was agreed
the bank left its rate unchanged
the yard has no orders for new ships
coffee became dearer after the frost
the firm sold its mines abroad
growers ask for a higher quota
the port is closed by a strike
oil producers cut their output
the deficit was smaller than expected
the two airlines will merge""".splitlines()


def main() -> None:
    texts = [*SPORT, *TRADE]
    labels = ["sport"] * len(SPORT) + ["trade"] * len(TRADE)
    classifier = layerfuse.LayerFusionClassifier(encoders=["minilm"], cv=3).fit(texts, labels)

    print("layer  leave-one-out accuracy")
    for score in classifier.profile_:
        chosen = "  chosen" if score.block in classifier.selection_.blocks else ""
        print(f"{score.block.layer:5}  {score.accuracy:.3f} ± {score.accuracy_se:.3f}{chosen}")
    accuracy = classifier.cv_.accuracy
    print(f"nested: {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})")

    classifier.save("stories", overwrite=True)
    loaded = layerfuse.load("stories")
    new = ["the captain scored twice", "sugar became dearer in spring"]
    for text, label, row in zip(new, loaded.predict(new), loaded.predict_proba(new), strict=True):
        print(f"{text}: {label} ({row.max():.2f})")


if __name__ == "__main__":
    main()
