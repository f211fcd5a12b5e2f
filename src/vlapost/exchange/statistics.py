"""What LeRobot normalises with: least, greatest, mean, standard deviation and quantiles of each feature, exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


class Statistics:
    """Collects numbers and pictures; pictures as a histogram of each colour, so that none has to be kept."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[NDArray[np.float64]]] = {}
        self.histograms: dict[str, NDArray[np.int64]] = {}
        self.pictures: dict[str, int] = {}

    def add(self, numbers: Mapping[str, NDArray[Any]], pictures: Mapping[str, Sequence[NDArray[np.uint8]]]) -> None:
        """Add T steps: numbers `[T]` or `[T, n]`, T pictures `[H, W, 3]`, by feature."""
        for name, values in numbers.items():
            self.numbers.setdefault(name, []).append(values.astype(np.float64).reshape(len(values), -1))
        for name, images in pictures.items():
            counts = [[np.bincount(image[..., c].reshape(-1), minlength=256) for c in range(3)] for image in images]
            self.histograms[name] = self.histograms.get(name, 0) + np.sum(counts, axis=0)
            self.pictures[name] = self.pictures.get(name, 0) + len(images)

    def result(self) -> dict[str, dict[str, list[Any]]]:
        """The entries of stats.json: lists of n numbers; of pictures `[3, 1, 1]`, of colours from 0 to 1."""
        found = {name: _of_numbers(np.concatenate(parts)) for name, parts in self.numbers.items()}
        for name, histogram in self.histograms.items():
            found[name] = _of_histogram(histogram, self.pictures[name])
        return found


def _of_numbers(values: NDArray[np.float64]) -> dict[str, list[Any]]:
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
        **{name: np.quantile(values, share, axis=0).tolist() for name, share in QUANTILES.items()},
    }


def _of_histogram(histogram: NDArray[np.int64], pictures: int) -> dict[str, list[Any]]:
    levels, total = np.arange(256) / 255, histogram[0].sum()
    mean = histogram @ levels / total
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(1) / total
    upto = histogram.cumsum(1)

    def level(share: float) -> NDArray[np.float64]:
        """The least level below or at which `share` of a colour's pixels are."""
        return levels[[np.searchsorted(row, max(1, np.ceil(share * total))) for row in upto]]

    values = {"min": level(0), "max": level(1), "mean": mean, "std": np.sqrt(variance)}
    values |= {name: level(share) for name, share in QUANTILES.items()}
    return {**{name: v.reshape(3, 1, 1).tolist() for name, v in values.items()}, "count": [pictures]}
