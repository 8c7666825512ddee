"""A network that mbnp trains is as good as one that PyTorch trains, by the same recipe (MBNP_NIGHTLY)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import backend, datasets, fused, models, train
from mbnp.datasets.cifar10 import subset
from mbnp.recipe import Recipe
from tests.tally import NIGHTLY, tally
from tests.twins import tensor, torch_network

SEEDS = range(5)


def trained_by_torch(module: nn.Module, data: datasets.Dataset, recipe: Recipe) -> float:
    """Train a classifier in PyTorch on the batches that `train.fit` makes; return its test accuracy."""
    assert recipe.schedule == "one-cycle"
    rng, total = np.random.default_rng(recipe.seed), recipe.epochs * (len(data.train) // recipe.batch_size)
    least, most = recipe.momentum
    module.train().to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(
        module.parameters(), recipe.lr, most, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        opt, recipe.lr, total_steps=total, pct_start=0.2, base_momentum=least, max_momentum=most
    )
    scale = {"mean": data.mean, "std": data.std}
    for _ in range(recipe.epochs):
        for x, y in datasets.batches(data.train, recipe.batch_size, rng, **scale, augment=recipe.augmentation()):
            opt.zero_grad()
            loss = F.cross_entropy(module(tensor(x)), torch.from_numpy(y), label_smoothing=recipe.label_smoothing)
            loss.backward()
            opt.step()
            schedule.step()
    module.eval()
    with torch.no_grad():
        found = [module(tensor(x)).argmax(1).numpy() == y for x, y in datasets.batches(data.test, 256, **scale)]
    return float(np.concatenate(found).mean())


@pytest.fixture
def all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(backend.max_threads())
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not NIGHTLY, reason="trains ten networks, in twenty minutes; set MBNP_NIGHTLY")
def test_as_good_as_pytorch(cifar10, tmp_path, all_threads):
    """Five pairs, each from the same weights and on the same batches: rounding alone makes them different runs."""
    data = cifar10 if len(cifar10.train) <= 10_000 else datasets.load(subset(cifar10, tmp_path / "subset"))
    ours, theirs = [], []
    for seed in SEEDS:
        net, recipe = models.mobilenet_v1_small(seed=seed), Recipe(seed=seed)
        theirs.append(trained_by_torch(torch_network(net), data, recipe))
        ours.append(train.fit(fused.convert(net), data, recipe)[-1].test_accuracy)
        print(f"seed {seed}: mbnp {ours[-1]:.2%}, PyTorch {theirs[-1]:.2%}", flush=True)
    mean, other = np.mean(ours), np.mean(theirs)
    print(f"mean: mbnp {mean:.2%}, PyTorch {other:.2%}")
    tally("accuracy in 0.01 %, mean of five seeds", mbnp=round(1e4 * mean), PyTorch=round(1e4 * other))
    # One standard deviation of a run is 0.9 points, and of the mean of five differences 0.6: three of these.
    assert abs(mean - other) < 0.018
    assert other > 0.7
