"""What a network looks at, as arrays: class activation maps, Grad-CAM, saliency, occlusion, and what is dead.

Symbols: f (N, h, w, C) a feature map, z_k the logit of class k, before softmax. Images x (N, H, W, 3) are normalised,
and networks run as in inference. `classes` is the class of each image (N,), or one for all. A map has the dtype of the
network; several of these functions go through x a few images at a time.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mbnp.errors import MbnpError, unknown
from mbnp.layers import AveragePool, Dropout, Flatten, GlobalAveragePool, Linear, Pointwise
from mbnp.network import Network, Sequential

_BYTES = 1 << 28  # of one batch's activations, about
_OF_PIXELS = 100  # the bytes of all activations, as a multiple of the image's: about as many in a MobileNet
_OCCLUDED = 32  # images at a time

# --- where it looks ---


def class_activation_map(net: Network, x: np.ndarray, classes: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return what each cell of the last feature map contributes to the logit of the image's class, (N, h, w).

    Where a global average and a linear layer follow it, the logit is z_k = mean_ij(sum_c w_ck f_ijc) + b_k,
    and the map is the sum over c: its mean plus the bias is the logit. Zhou et al., "Learning Deep Features for
    Discriminative Localization", 2016, arXiv:1512.04150, equations 1 and 2; there the average is a sum.

    Any average and any layers without activation may follow: the map is h w sum_c f_ijc dz_k/df_ijc, which is the same,
    and its mean is the logit without what biases add. MbnpError for other networks, for which `grad_cam` is.
    """
    net.check_input(x)
    dlogits = _one_hot(net, len(x), classes)
    body, head = _divided(net)
    head = copy.deepcopy(head)  # whose gradients are its own
    for _, layer in head.parts():
        layer.still()
    found = []
    for some in _batches(x):
        f = body.forward(x[some])
        head.forward(f, train=True)
        slope = head.backward(dlogits[some])
        assert slope is not None  # a container by itself needs dx
        found.append(f.shape[1] * f.shape[2] * np.einsum("nijc,nijc->nij", f, slope))
    return np.concatenate(found)


def grad_cam(
    net: Network, x: np.ndarray, classes: int | Sequence[int] | np.ndarray, layer: str, signed: bool = False
) -> np.ndarray:
    """Return the Grad-CAM of each image's class at the output of `layer`, (N, h, w): see `grad_cams`."""
    net.check_input(x)
    dlogits = _one_hot(net, len(x), classes)
    names = [name for name, _ in net.parts() if name]
    if layer not in names:
        raise unknown("layer", layer, names)
    found = []
    for some in _batches(x):
        f = net.activations(x[some])[layer]
        if f.ndim != 4:
            raise MbnpError(f"{layer} has no feature map, but outputs {f.shape[1:]}: choose a layer before the average")
        df = net.gradients(x[some], dlogits[some])[layer]
        found.append(grad_cams({layer: f}, {layer: df}, signed)[layer])
    return np.concatenate(found)


def grad_cams(
    activations: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], signed: bool = False
) -> dict[str, np.ndarray]:
    """Return the Grad-CAM (N, h, w) at each layer that outputs a feature map, by the layer's name.

    activations, gradients: of `net.activations(x)`, and of `net.gradients(x, dlogits)` with 1 for the class. The map is
    relu(sum_c a_c f_ijc) with a_c = mean_ij(dz_k/df_ijc): Selvaraju et al., "Grad-CAM", 2017, arXiv:1610.02391,
    equations 1 and 2. signed: without the ReLU. Before a global average and a linear layer the signed one is the class
    activation map divided by h w.
    """
    found = {}
    for name, f in activations.items():
        if f.ndim == 4 and name in gradients:
            maps = np.einsum("nijc,nc->nij", f, gradients[name].mean(axis=(1, 2)))
            found[name] = maps if signed else np.maximum(maps, 0)
    return found


def saliency(net: Network, x: np.ndarray, classes: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return for each pixel how much a small change of it can change the logit of the image's class, (N, H, W).

    That is max_c |dz_k/dx_ijc|. Simonyan et al., "Deep Inside Convolutional Networks", 2013, arXiv:1312.6034,
    section 3.1.
    """
    net.check_input(x)
    dlogits = _one_hot(net, len(x), classes)
    slopes = (net.gradients(x[some], dlogits[some])["input"] for some in _batches(x))
    return np.concatenate([np.abs(slope).max(axis=3) for slope in slopes])


def occlusion(
    net: Network,
    x: np.ndarray,
    classes: int | Sequence[int] | np.ndarray,
    size: int,
    stride: int,
    fill: float | Sequence[float] | np.ndarray = 0.0,
) -> np.ndarray:
    """Return by how much the logit of the image's class falls where a square hides a part of it, (N, rows, columns).

    rows is H / stride, rounded up, and columns W / stride: the image is divided into cells of stride x stride pixels,
    smaller ones at the bottom and right if need be, and a square of size x size pixels is put in the middle of each,
    half a pixel higher and further left where that is between two pixels, and cut off at the border. fill: the pixels
    of the square, a number or one a channel; 0 is the mean colour of the data in normalised images.

    The fast network is faster at it. Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2013,
    arXiv:1311.2901, section 4.2 and figure 6, who show the probability of the class instead.
    """
    chosen = _one_hot(net, len(x), classes)
    return np.einsum("nijk,nk->nij", occlusions(net, x, size, stride, fill), chosen)


def occlusions(
    net: Network, x: np.ndarray, size: int, stride: int, fill: float | Sequence[float] | np.ndarray = 0.0
) -> np.ndarray:
    """Return the `occlusion` of every class, (N, rows, columns, K), for the price of one."""
    net.check_input(x)
    for name, value in (("size", size), ("stride", stride)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise MbnpError(f"{name} must be a whole number of pixels from 1 up, got {value!r}")
    colour = np.asarray(fill, x.dtype)
    if colour.shape not in ((), x.shape[3:]):
        raise MbnpError(f"fill must be a number or {x.shape[3]} of them, one a channel, got {fill!r}")
    down, across = (_squares(length, size, stride) for length in x.shape[1:3])
    places = [(n, i, j) for n in range(len(x)) for i in range(len(down)) for j in range(len(across))]
    logits = np.concatenate([net.forward(x[some]) for some in _slices(len(x), _OCCLUDED)])
    drops = np.repeat(logits, len(down) * len(across), axis=0)
    for some in _slices(len(places), _OCCLUDED):
        hidden = x[[n for n, _, _ in places[some]]]
        for image, (_, i, j) in zip(hidden, places[some], strict=True):
            image[down[i], across[j]] = colour
        drops[some] -= net.forward(hidden)
    return drops.reshape(len(x), len(down), len(across), -1)


# --- what layers output ---


class Statistics(NamedTuple):
    """What one layer outputs for a batch. zeros: the share of entries that are 0.

    dead: the share of channels that are 0 everywhere in the batch. After a ReLU they have no effect on the logits.
    """

    mean: float
    std: float
    zeros: float
    dead: float


def statistics(activations: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    """Return the statistics of each layer's outputs (N, h, w, C) or (N, C), as `net.activations(x)` returns them."""
    return {
        name: Statistics(
            float(f.mean(dtype=np.float64)),
            float(f.std(dtype=np.float64)),
            float((f == 0).mean()),
            1 - float((f != 0).any(axis=tuple(range(f.ndim - 1))).mean()),
        )
        for name, f in activations.items()
    }


# --- to look at ---


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return maps (..., h, w) at the size (..., height, width): bilinear between the centres of the cells.

    Beyond the outer centres a map continues as it is there.
    """
    h, w = maps.shape[-2:]
    dtype = np.result_type(maps, np.float32)
    return np.einsum("...ij,ip,jq->...pq", maps, _between(h, height, dtype), _between(w, width, dtype))


def _between(cells: int, pixels: int, dtype: np.dtype) -> np.ndarray:
    """Return the weight of each cell in each pixel, (cells, pixels)."""
    centres = (np.arange(cells) + 0.5) * pixels / cells - 0.5
    return np.array([np.interp(np.arange(pixels), centres, row) for row in np.eye(cells)], dtype)


# --- shared ---


def _one_hot(net: Network, count: int, classes: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return dlogits (count, K) with 1 for the class of each image."""
    found = np.asarray(classes)
    if found.dtype.kind not in "iu" or found.shape not in ((), (count,)):
        what = f"{found.dtype} of shape {found.shape}"
        raise MbnpError(f"classes must be a whole number, or one for each of {count} images, got {what}")
    wrong = found[(found < 0) | (found >= net.num_classes)]
    if wrong.size:
        raise MbnpError(f"there is no class {wrong.flat[0]}: the network's are 0 to {net.num_classes - 1}")
    return np.eye(net.num_classes, dtype=net.dtype)[np.broadcast_to(found, count)]


def _divided(net: Network) -> tuple[Sequential, Sequential]:
    """Return the layers up to the last feature map, and the average and linear layers after it, or raise MbnpError."""
    flat = net.flat()
    for k in reversed(range(len(flat))):
        name, layer = flat[k]
        if isinstance(layer, GlobalAveragePool | AveragePool):
            body, head = ([layer for _, layer in part] for part in (flat[:k], flat[k:]))
            return Sequential(body), Sequential(head)
        if not isinstance(layer, Linear | Pointwise | Flatten | Dropout):
            why = f"{name} ({type(layer).__name__}) comes after the average over the feature map, or there is none"
            raise MbnpError(f"no class activation map: {why}, so that no cell has a share of the logit; use grad_cam")
    raise MbnpError("no class activation map: this network takes no average over a feature map")


def _squares(length: int, size: int, stride: int) -> list[slice]:
    """Return the pixels that a square in the middle of each cell hides, along one axis."""
    middles = [(start + min(start + stride, length)) for start in range(0, length, stride)]  # doubled
    return [slice(max((middle - size) // 2, 0), (middle - size) // 2 + size) for middle in middles]


def _batches(x: np.ndarray) -> Iterator[slice]:
    return _slices(len(x), max(1, _BYTES // (_OF_PIXELS * x[0].nbytes)))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
