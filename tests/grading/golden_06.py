"""Lesson 6's exercises by PyTorch: its cross_entropy and autograd, OneCycleLR, pad and flip."""

import numpy as np
import torch
from torch.nn import functional as F


def torch_golden(name: str, case: dict) -> np.ndarray | None:
    return {"loss_gradient": _gradient, "one_cycle": _cycle, "mirror_and_crop": _crop}[name](**case)


def _gradient(logits, labels):
    z = torch.tensor(logits.astype(np.float64), requires_grad=True)
    F.cross_entropy(z, torch.tensor(labels)).backward()
    return z.grad.numpy()


def _cycle(peak, total, warm):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, total, pct_start=warm, cycle_momentum=False, div_factor=25.0, final_div_factor=1e4
    )
    lrs = []
    for _ in range(total):
        lrs.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step() if len(lrs) < total else None
    return np.array(lrs)


def _crop(images, top, left, mirrored, pad):
    _, h, w, _ = images.shape
    x = torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32))
    x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
    crops = [x[i, :, t : t + h, s : s + w] for i, (t, s) in enumerate(zip(top, left, strict=True))]
    crops = [crop.flip(2) if flip else crop for crop, flip in zip(crops, mirrored, strict=True)]
    return torch.stack(crops).permute(0, 2, 3, 1).to(torch.uint8).numpy()
