"""Label lines of text: python run.py < texts.txt. Needs onnxruntime, tokenizers and numpy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).parent
SETTINGS = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
SESSION = onnxruntime.InferenceSession(HERE / "model.onnx")
TOKENIZERS = {e["file"]: Tokenizer.from_file(str(HERE / e["file"])) for e in SETTINGS["encoders"]}


def tokenize(file, inputs, prefix, suffix, blank, special, most, texts):
    filled = [prefix + (text or blank) + suffix for text in texts]
    found = TOKENIZERS[file].encode_batch(filled, add_special_tokens=special)  # padded
    pair = np.array([[one.ids for one in found], [one.attention_mask for one in found]])
    for row in np.flatnonzero(pair[1].sum(axis=1) > most):  # the text is cut, not the prompt
        one, low, high = found[row], len(prefix) or -1, len(filled[row]) - len(suffix)
        own = [i for i, (_, end) in enumerate(one.offsets) if low < end <= high]
        cut = [i for i in own if one.token_to_sequence(i) == 0][most - sum(pair[1, row]) :]
        pair[:, row] = np.append(np.delete(pair[:, row], cut, 1), [[0] * len(cut)] * 2, 1)
    return dict(zip(inputs, pair[:, :, :most], strict=True))


def predict_proba(texts, batch=32):
    order, found, feed = sorted(range(len(texts)), key=lambda row: len(texts[row])), {}, {}
    for start in range(0, len(texts), batch):
        for own in SETTINGS["encoders"]:
            feed |= tokenize(**own, texts=[texts[row] for row in order[start : start + batch]])
        found |= dict(zip(order[start : start + batch], SESSION.run(None, feed)[0], strict=True))
    return np.array([found[row] for row in range(len(texts))])


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8-sig", newline="\n")  # other line breaks are text
    for row in predict_proba([line.rstrip("\r\n") for line in sys.stdin]):
        limits = SETTINGS["thresholds"]  # of several labels, each of which a text may have
        found = [row.argmax()] if limits is None else np.flatnonzero(row >= limits)
        print(*(f"{SETTINGS['classes'][i]}\t{row[i]:.4f}" for i in found), sep="\t")
