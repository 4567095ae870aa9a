"""Ridge regression with a Gaussian kernel over a few training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from layerfuse.files import take_tensor
from layerfuse.heads.linear import RidgeHead
from layerfuse.heads.protocol import ANY_LINK, Floats
from layerfuse.targets import Targets

_LANDMARKS = 2048
_BANDWIDTH_ROWS = 1000  # rows whose distances give the bandwidth
_SMALLEST = 1e-6  # of the largest eigenvalue: below, directions are rounding errors
_CHUNK = 4096  # rows whose kernel values are in memory at a time


@dataclass(frozen=True)
class KernelHead:
    """Logits that are linear in ``exp(-|x - l|^2 / (2 s^2))`` over landmarks l.

    The Nyström method (Williams and Seeger, NeurIPS 2000), in float32 and without the directions
    of the landmarks' kernel matrix that are rounding errors there, which scikit-learn's
    ``Nystroem`` keeps. The landmarks (dim, m) are training rows drawn at random, all of them up to
    2,048, divided by the bandwidth s, the median distance of training rows; ``scale`` (1,) is 1/s,
    and ``linear`` has a weight for each landmark and output.
    """

    kind: ClassVar[str] = "kernel"
    links: ClassVar[tuple[str, ...]] = ANY_LINK
    landmarks: Floats
    scale: Floats
    linear: RidgeHead

    @property
    def penalty(self) -> float:
        return self.linear.penalty

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.landmarks), self.linear.shape[1]

    def logits(self, X: Floats) -> Floats:
        chunks = [X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK)] or [X]
        return np.concatenate(
            [self.linear.logits(_kernel(chunk * self.scale, self.landmarks)) for chunk in chunks]
        )

    def arrays(self) -> dict[str, Floats]:
        return {"landmarks": self.landmarks, "scale": self.scale, **self.linear.arrays()}

    @classmethod
    def load(cls, arrays: Mapping[str, Floats], penalty: float) -> Self:
        linear = RidgeHead.load(arrays, penalty)
        landmarks = take_tensor(arrays, "landmarks", None, linear.shape[0])
        return cls(landmarks, take_tensor(arrays, "scale", 1), linear)

    @classmethod
    def search_penalty(cls, X: Floats, targets: Targets, *, seed: int) -> float:
        # The kernel depends on distances only, so that principal coordinates give the same one.
        features, _ = _features(X, *_draw_landmarks(X, seed))
        centered = features - features.mean(axis=0)
        return RidgeHead.search_penalty(centered, targets, seed=seed)

    @classmethod
    def fit(cls, X: Floats, targets: Targets, penalty: float, *, seed: int) -> Self:
        landmarks, scale = _draw_landmarks(X, seed)
        features, roots = _features(X, landmarks, scale)
        ridge = RidgeHead.fit(features, targets, penalty, seed=seed)
        coef = np.asarray(roots @ ridge.coef, dtype=np.float32)
        return cls(landmarks, scale, RidgeHead(coef, ridge.intercept, penalty))


def _draw_landmarks(X: Floats, seed: int) -> tuple[Floats, Floats]:
    """Landmarks (dim, m), divided by the bandwidth, and what they were multiplied by for it."""
    from scipy.spatial.distance import pdist

    order = np.random.default_rng(seed).permutation(len(X))
    distances = pdist(X[order[:_BANDWIDTH_ROWS]])
    distances = distances[distances > 0]  # equal texts say nothing about the scale
    bandwidth = float(np.median(distances)) if len(distances) else 1.0
    scale = np.array([1.0 / bandwidth], dtype=np.float32)
    return np.ascontiguousarray(X[np.sort(order[:_LANDMARKS])].T) * scale, scale


def _features(X: Floats, landmarks: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Features (n, rank) whose inner products approximate the kernel; kernel values to them."""
    values, vectors = np.linalg.eigh(_kernel(landmarks.T, landmarks).astype(np.float64))
    kept = values > _SMALLEST * values[-1]
    roots = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    return _kernel(X * scale, landmarks) @ roots, roots


def _kernel(X: Floats, landmarks: Floats) -> Floats:
    """``exp(-|x - l|^2 / 2)``: rows (n, dim) and landmarks (dim, m) to (n, m)."""
    values = X @ landmarks
    values -= np.square(X).sum(axis=1, keepdims=True) / 2
    values -= np.square(landmarks).sum(axis=0) / 2
    return np.asarray(np.exp(np.minimum(values, 0.0, out=values), out=values))
