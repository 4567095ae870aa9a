"""A kernel classifier by random Fourier features, with ridge regression on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.heads.linear import LinearHead, fit_linear, search_linear

__all__ = ["KernelHead", "fit_kernel", "search_kernel"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

_N_FEATURES = 2048
_SAMPLE = 1000  # rows whose distances give the bandwidth


@dataclass(frozen=True)
class KernelHead:
    """Logits that are linear in ``sqrt(2/m) cos(X @ frequencies + phases)``.

    Random Fourier features of the Gaussian kernel (Rahimi and Recht, NeurIPS 2007):
    ``frequencies`` (dim, m), ``phases`` (m,) in radians, m = 2,048; ``linear`` is the ridge head
    over them.
    """

    frequencies: Floats
    phases: Floats
    linear: LinearHead
    kind: str = "kernel"

    @property
    def penalty(self) -> float:
        return self.linear.penalty

    @property
    def shape(self) -> tuple[int, int]:
        """(dim, n_classes)."""
        return len(self.frequencies), self.linear.shape[1]

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""
        return self.linear.logits(_features(X, self.frequencies, self.phases))

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``frequencies``, ``phases``, ``coef`` and ``intercept``."""
        own = {"frequencies": self.frequencies, "phases": self.phases}
        return {**own, **self.linear.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], penalty: float) -> KernelHead:
        """The inverse of `arrays`; a FormatError when they do not fit together."""
        linear = LinearHead.from_arrays("ridge", arrays, penalty)
        m = linear.shape[0]
        frequencies = take_tensor(arrays, "frequencies", None, m)
        return cls(frequencies, take_tensor(arrays, "phases", m), linear)


def search_kernel(Z: Floats, y: Labels, seed: int) -> float:
    """The ridge penalty over the kernel's features, by exact leave-one-out.

    The kernel depends on distances only, so that principal coordinates give the same one.
    """
    features = _features(Z, *_draw(Z, seed))
    return search_linear("ridge", features - features.mean(axis=0), y, None, seed)


def fit_kernel(
    X: Floats, y: Labels, n_classes: int, penalty: float, weights: Floats | None, seed: int
) -> KernelHead:
    """Draw the features, with the median distance of training rows as bandwidth, and fit ridge."""
    frequencies, phases = _draw(X, seed)
    features = _features(X, frequencies, phases)
    linear = fit_linear("ridge", features, y, n_classes, penalty, weights)
    return KernelHead(frequencies, phases, linear)


def _draw(X: Floats, seed: int) -> tuple[Floats, Floats]:
    """Frequencies (dim, m) of exp(-|x - x'|^2 / (2 s^2)), s the median distance; phases (m,)."""
    from scipy.spatial.distance import pdist

    random = np.random.default_rng(seed)
    distances = pdist(X[random.permutation(len(X))[:_SAMPLE]])
    distances = distances[distances > 0]  # equal texts say nothing about the scale
    bandwidth = float(np.median(distances)) if len(distances) else 1.0
    frequencies = random.standard_normal((X.shape[1], _N_FEATURES), dtype=np.float32)
    frequencies /= np.float32(bandwidth)
    phases = random.uniform(0.0, 2.0 * np.pi, _N_FEATURES).astype(np.float32)
    return frequencies, phases


def _features(X: Floats, frequencies: Floats, phases: Floats) -> Floats:
    turned = X @ frequencies
    turned += phases
    np.cos(turned, out=turned)
    turned *= np.float32(np.sqrt(2.0 / len(phases)))
    return np.asarray(turned)
