"""A training recipe: everything that decides a run apart from the network and the data."""

from dataclasses import dataclass

from mbnp import optim
from mbnp.datasets.batching import AUGMENTATIONS, Augmentation, augment
from mbnp.errors import MbnpError, unknown
from mbnp.network import Network


@dataclass(frozen=True)
class Recipe:
    """SGD with a schedule; the defaults suit small networks on 32x32 images.

    momentum: one-cycle moves between the two, the other schedules stay at their mean
    schedule: "one-cycle" | "cosine" to zero | "step": a tenth after each third of the run | "constant"
    augment: True or "shift": images are moved by up to an eighth of their size, and mirrored, at random; "crop": a
        random part is shown at the size of the whole, or its mirror image; False: neither
    seed: decides the order of the images and their augmentation; the network's weights have their own
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: tuple[float, float] = (0.85, 0.95)
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0
    augment: bool | str = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed"):
            if not isinstance(getattr(self, name), int):
                raise MbnpError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.epochs < 1 or self.batch_size < 1:
            raise MbnpError(f"epochs and batch size must be at least 1, got {self.epochs} and {self.batch_size}")
        if self.seed < 0:
            raise MbnpError(f"a seed is at least 0, got {self.seed}")
        if self.schedule not in optim.SCHEDULES:
            raise unknown("schedule", self.schedule, optim.SCHEDULES)
        if self.augment not in (True, False, *AUGMENTATIONS):
            raise unknown("augmentation", self.augment, AUGMENTATIONS)
        optim.check_range("lr", self.lr)
        optim.check_range("weight_decay", self.weight_decay)
        if not 0 <= self.label_smoothing <= 1:
            raise MbnpError(f"label_smoothing must be from 0 to 1, got {self.label_smoothing}")
        if not isinstance(self.momentum, tuple) or len(self.momentum) != 2:
            raise MbnpError(f"momentum is a pair (lowest, highest), got {self.momentum!r}")
        for momentum in self.momentum:
            optim.check_range("momentum", momentum, below=1)

    def optimiser(self, net: Network) -> optim.SGD:
        """Make SGD over the network's parameters, before the first step."""
        return optim.SGD(net.parameters(), self.lr, sum(self.momentum) / 2, self.nesterov, self.weight_decay)

    def rates(self, total: int) -> optim.Schedule:
        """Make the schedule of learning rate and momentum over `total` steps."""
        if self.schedule == "one-cycle":
            return optim.one_cycle(self.lr, total, momentum=self.momentum)
        if self.schedule == "cosine":
            return optim.cosine(self.lr, total)
        if self.schedule == "step":
            return optim.step(self.lr, every=-(-total // 3))
        return optim.constant(self.lr)

    def augmentation(self) -> Augmentation | None:
        """Return what `datasets.batches` takes to augment training images."""
        return AUGMENTATIONS.get(str(self.augment), augment if self.augment else None)
