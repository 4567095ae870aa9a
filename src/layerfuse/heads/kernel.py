"""A Gaussian kernel classifier over a few training rows, with ridge regression on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.heads.linear import LinearHead, fit_linear, search_linear
from layerfuse.targets import Targets

__all__ = ["KernelHead", "fit_kernel", "search_kernel"]

Floats = npt.NDArray[np.float32]

_LANDMARKS = 2048
_SAMPLE = 1000  # rows whose distances give the bandwidth
_SMALLEST = 1e-6  # of the largest eigenvalue: below, directions are rounding errors
_CHUNK = 4096  # rows whose kernel values are in memory at a time


@dataclass(frozen=True)
class KernelHead:
    """Logits that are linear in ``exp(-|x - l|^2 / (2 s^2))`` over landmarks l.

    The Nyström method (Williams and Seeger, NeurIPS 2000): ridge regression with a Gaussian kernel
    whose solution is a sum over ``landmarks`` (dim, m), training rows drawn at random, all of them
    up to 2,048, and divided by the bandwidth s; ``scale`` (1,) is 1/s. ``linear`` has a weight for
    each landmark and class.
    """

    landmarks: Floats
    scale: Floats
    linear: LinearHead
    kind: str = "kernel"

    @property
    def penalty(self) -> float:
        return self.linear.penalty

    @property
    def shape(self) -> tuple[int, int]:
        """(dim, n_classes)."""
        return len(self.landmarks), self.linear.shape[1]

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""
        parts = [X[start : start + _CHUNK] for start in range(0, len(X), _CHUNK)] or [X]
        return np.concatenate(
            [self.linear.logits(_kernel(part * self.scale, self.landmarks)) for part in parts]
        )

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``landmarks``, ``scale``, ``coef`` and ``intercept``."""
        return {"landmarks": self.landmarks, "scale": self.scale, **self.linear.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], penalty: float) -> KernelHead:
        """The inverse of `arrays`; a FormatError when they do not fit together."""
        linear = LinearHead.from_arrays("ridge", arrays, penalty)
        landmarks = take_tensor(arrays, "landmarks", None, linear.shape[0])
        return cls(landmarks, take_tensor(arrays, "scale", 1), linear)


def search_kernel(Z: Floats, targets: Targets, seed: int) -> float:
    """The ridge penalty over the kernel's features, by exact leave-one-out.

    The kernel depends on distances only, so that principal coordinates give the same one.
    """
    features, _ = _Nystroem.draw(Z, seed).features(Z)
    return search_linear("ridge", features - features.mean(axis=0), targets, None, seed)


def fit_kernel(
    X: Floats, targets: Targets, penalty: float, weights: Floats | None, seed: int
) -> KernelHead:
    """Draw landmarks, with the median distance of training rows as bandwidth, and fit ridge."""
    drawn = _Nystroem.draw(X, seed)
    features, roots = drawn.features(X)
    linear = fit_linear("ridge", features, targets, penalty, weights)
    coef = np.asarray(roots @ linear.coef, dtype=np.float32)
    folded = LinearHead("ridge", coef, linear.intercept, penalty)
    return KernelHead(drawn.landmarks, drawn.scale, folded)


@dataclass(frozen=True)
class _Nystroem:
    """Landmarks (dim, m), divided by the bandwidth; ``scale`` (1,) divides by it."""

    landmarks: Floats
    scale: Floats

    @classmethod
    def draw(cls, X: Floats, seed: int) -> _Nystroem:
        """Landmarks of ``exp(-|x - x'|^2 / (2 s^2))``, s the median distance."""
        from scipy.spatial.distance import pdist

        order = np.random.default_rng(seed).permutation(len(X))
        distances = pdist(X[order[:_SAMPLE]])
        distances = distances[distances > 0]  # equal texts say nothing about the scale
        bandwidth = float(np.median(distances)) if len(distances) else 1.0
        scale = np.array([1.0 / bandwidth], dtype=np.float32)
        return cls(np.ascontiguousarray(X[np.sort(order[:_LANDMARKS])].T) * scale, scale)

    def features(self, X: Floats) -> tuple[Floats, Floats]:
        """Features (n, rank) whose inner products approximate the kernel, and the map from kernel
        values (n, m) to them, (m, rank)."""
        own = _kernel(self.landmarks.T, self.landmarks).astype(np.float64)
        values, vectors = np.linalg.eigh(own)
        kept = values > _SMALLEST * values[-1]
        roots = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
        return _kernel(X * self.scale, self.landmarks) @ roots, roots


def _kernel(X: Floats, landmarks: Floats) -> Floats:
    """``exp(-|x - l|^2 / 2)``: rows (n, dim) and landmarks (dim, m) to (n, m)."""
    values = X @ landmarks
    values -= np.square(X).sum(axis=1, keepdims=True) / 2
    values -= np.square(landmarks).sum(axis=0) / 2
    return np.asarray(np.exp(np.minimum(values, 0.0, out=values), out=values))
