"""What every data set looks like to the rest of the package."""

from dataclasses import dataclass

import numpy as np

from mbnp.errors import MbnpError


@dataclass(frozen=True)
class Split:
    """One half of a data set: pictures and what is on them.

    images: (N, H, W, 3) uint8, channels last, red first
    labels: (N,) int64, an index into the data set's classes
    masks:  (N, H, W) bool, the visible pixels of the object; None where nobody knows (CIFAR-10)
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.images):
            raise MbnpError(f"{len(self.images)} pictures have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """Training and test pictures, the names of their classes, and how to normalise them.

    name:   "cifar10" or "shapes10"; of record files with ten other classes, the name of their folder
    source: where the pictures came from: a path, or "drawn by mbnp, seed 0"
    mean, std: per channel, of training pictures scaled to 0..1
    epochs: how many a small MobileNet needs; what `mbnp train` takes when it is not told
    """

    name: str
    source: str
    train: Split
    test: Split
    classes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epochs: int

    def __str__(self) -> str:
        """One plain line: `cifar10, 50,000 training and 10,000 test pictures (data/cifar-10-batches-bin)`."""
        return (
            f"{self.name}, {len(self.train):,} training and {len(self.test):,} test pictures ({self.source})"
        )
