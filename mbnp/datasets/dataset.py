"""The form that every data set has for the rest of the package."""

from dataclasses import dataclass

import numpy as np

from mbnp.errors import MbnpError, refuse_mask


@dataclass(frozen=True, repr=False)
class Split:
    """The training or test images of a data set, and what is on them.

    images: (N, H, W, 3) uint8, channels last, red first
    labels: (N,) int64, indices into the data set's classes
    masks:  (N, H, W) bool, the visible pixels of the object; None where they are not known (CIFAR-10)
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        refuse_mask("images", self.images)
        refuse_mask("labels", self.labels)
        if len(self.labels) != len(self.images):
            raise MbnpError(f"{len(self.images)} images have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<Split of {len(self):,} images of {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True, repr=False)
class Dataset:
    """Training and test images, the names of their classes, and how to normalise them.

    name:   "cifar10" or "shapes10"; of record files with ten other classes, the name of their folder
    source: where the images came from: a path, or "drawn by mbnp, seed 0"
    mean, std: per channel, of training images scaled to 0..1
    epochs: as many as a small MobileNet needs; the default of `mbnp train`
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
        """Return one line: `cifar10, 50,000 training and 10,000 test images (data/cifar-10-batches-bin)`."""
        return f"{self.name}, {len(self.train):,} training and {len(self.test):,} test images ({self.source})"

    def __repr__(self) -> str:
        return f"<Dataset {self}>"
