"""The form that every data set has for the rest of the package."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mbnp.errors import MbnpError, refuse_mask


@dataclass(frozen=True, repr=False)
class Split:
    """The training or test images of a data set, and what is on them.

    images: (N, H, W, C) uint8, channels last: red, green and blue, or grey; they may be mapped from a file
    labels: (N,) int64, indices into the data set's classes; with boxes (N, M), one for each, and -1 where none is
    masks:  (N, H, W) bool, the visible pixels of the object; None where they are not known (CIFAR-10). With boxes
        uint8: k + 1 for the visible pixels of the object of box k, else 0
    boxes:  (N, M, 4) float32, in pixels: left, top, right and bottom of each object; None where an image has one label
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    boxes: np.ndarray | None = None

    def __post_init__(self) -> None:
        refuse_mask("images", self.images)
        refuse_mask("labels", self.labels)
        if len(self.labels) != len(self.images):
            raise MbnpError(f"{len(self.images)} images have {len(self.labels)} labels")
        if self.boxes is not None:
            self._check_boxes(self.boxes)

    def _check_boxes(self, boxes: np.ndarray) -> None:
        if boxes.shape != (*self.labels.shape, 4) or self.labels.ndim != 2 or boxes.dtype.kind != "f":
            what = f"labels (N, M) need boxes (N, M, 4) of floats: got {self.labels.shape}"
            raise MbnpError(f"{what}, and {boxes.shape} of {boxes.dtype}")
        there = self.labels >= 0
        # Negated, so that NaN is bad.
        if (bad := there & ~(boxes[..., :2] < boxes[..., 2:]).all(axis=-1) | there & ~np.isfinite(boxes).all(-1)).any():
            image, k = np.argwhere(bad)[0]
            raise MbnpError(
                f"box {k} of image {image} is {boxes[image, k].tolist()}: left must be less than right, top than bottom"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<Split of {len(self):,} images of {'x'.join(map(str, self.images.shape[1:]))}>"


@dataclass(frozen=True, repr=False)
class Dataset:
    """Training and test images, the names of their classes, and how to normalise them.

    name:   "cifar10", "cifar100", "shapes10" or "scenes10"; of other images, the name of their folder
    source: where the images came from: a path, or "drawn by mbnp, seed 0"
    mean, std: per channel, of training images scaled to 0..1
    epochs: as many as a small MobileNet needs; the default of `mbnp train`
    notes:  what else there is to say, a line each
    damaged: the files that could not be read, a line each
    sha256: of images and labels, where it is known without reading them all
    """

    name: str
    source: str
    train: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    notes: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    sha256: str | None = None

    def __str__(self) -> str:
        """Return one line: `cifar10, 50,000 training and 10,000 test images (data/cifar-10-batches-bin)`."""
        return f"{self.name}, {len(self.train):,} training and {len(self.test):,} test images ({self.source})"

    def __repr__(self) -> str:
        return f"<Dataset {self}>"


def grey(data: Dataset) -> Dataset:
    """Return a data set in memory with one channel in place of three, as Pillow weighs them."""
    splits = []
    for split in (data.train, data.test):
        _, h, w, _ = split.images.shape
        flat = Image.fromarray(split.images.reshape(-1, w, 3)).convert("L")
        splits.append(dataclasses.replace(split, images=np.asarray(flat).reshape(-1, h, w, 1)))
    values = splits[0].images / np.float32(255)
    mean, std = (float(values.mean(dtype=np.float64)),), (float(values.std(dtype=np.float64)),)
    return dataclasses.replace(data, train=splits[0], test=splits[1], mean=mean, std=std)
