"""A network, or an operation, against PyTorch in float64: output, gradients, running statistics.

The same numbers go into both, so that nothing but rounding may differ: about 1e-16 of an array's largest entry, and
more behind many layers. PyTorch is imported when it is used.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.gradcheck import finite
from mbnp.gradcheck.report import Errors, worst
from mbnp.layers import BatchNorm, Dropout
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.parameter import Parameter
from mbnp.weights import layouts, torch_names

TOLERANCE = 1e-9
Arrays = dict[str, np.ndarray]


def against_torch(
    net: Network, module: Any, x: np.ndarray, labels: np.ndarray, *, names: Mapping[str, str] | str = "mbnp",
    tol: float = TOLERANCE,
) -> Errors:  # fmt: skip
    """Compare a training step of `net`, up to its gradients, with that of a PyTorch module; return all errors.

    They are those of "output", "loss" (cross-entropy), "dx", and by their names in `net.state()` of the gradient of
    every parameter that is not frozen and of the running statistics. Neither network is changed: copies of both run in
    float64, the module's with the weights of `net`. x (N, H, W, C) as `net` takes it, labels (N,).

    names: which arrays belong together. "mbnp": those of the same name in `weights.to_torch(net)`; "timm": timm's;
    or a mapping from layers, blocks or arrays of `net` to the module's: what it leaves out has the same name.

    An error is the largest difference, relative to the largest entry of PyTorch's array. Raise MbnpError where one
    exceeds `tol`, with the worst entry of the array that is computed first: what is wrong there makes later ones
    wrong, too. With `tol=math.inf` nothing is too large. What these weights and images never reach is not compared: a
    ReLU is a ReLU6 until a value exceeds 6.
    """
    torch = _torch()
    x, labels = _checked(torch, net, module, x, labels)
    ours, theirs = finite.double(net), copy.deepcopy(module).cpu().double().requires_grad_(True)
    ours.needs_dx = True
    partners = _partners(ours, theirs, names)
    _check_modes(ours, theirs, partners)
    state = {partners[name]: tensor for name, tensor in torch_names.to_torch(ours).items()}
    theirs.load_state_dict(state, strict=False)

    found = _run(ours, x, labels)
    expected = _run_torch(torch, theirs, x, labels, found["output"].shape) | _arrays(theirs, ours, partners)
    learned = [name for name, p in ours.parameters().items() if not p.frozen]
    order = {name: name for name in ours.buffers()} | {"output": "the output", "loss": "the loss"}
    order |= {name: f"the gradient of {name}" for name in reversed(learned)} | {"dx": "the gradient of x"}
    return _judged(
        found, expected, order, learned, "mbnp says", tol,
        more=lambda name: _suspects(ours, x.shape, name) if name in (*learned, "dx") else "",
    )  # fmt: skip


def op_against_torch(
    forward: finite.Forward, backward: finite.Backward, torch_function: Callable[..., Any],
    inputs: Sequence[np.ndarray], *, tol: float = TOLERANCE, seed: int = 0,
) -> Errors:  # fmt: skip
    """Compare an operation with a function of PyTorch, in float64; return the errors of the output and each gradient.

    forward and backward are those of `compare`. torch_function(*tensors) takes the inputs as tensors and returns one,
    all in mbnp's layout: it permutes them itself, (N, H, W, C) to (N, C, H, W) and back. dy is random.

    Gradients are called after the arguments of `forward`, "dx" for x. An error is the largest difference, relative to
    the largest entry of PyTorch's array; MbnpError where one exceeds `tol`, with the worst entry.
    """
    torch = _torch()
    inputs = finite.in_float64(inputs)
    names = finite.argument_names(forward, len(inputs))
    y = finite.output(forward, inputs, names)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    gradients = finite.gradients(backward, dy, inputs, names)
    tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in inputs]
    hint = ": it permutes what it is given, and its result back to mbnp's layout"
    output = _output(torch, "the torch function", torch_function, tensors, y.shape, hint)
    output.backward(torch.tensor(dy))
    found, expected, order = {"output": y}, {"output": output.detach().numpy()}, {"output": "the output"}
    for name, dx, tensor in zip(names, gradients, tensors, strict=True):
        if dx is not None:
            key = finite.gradient_name(name)
            found[key], expected[key] = dx, _gradient(tensor)
            order[key] = f"the gradient of {name}"
    return _judged(found, expected, order, found.keys() - {"output"}, "the operation says", tol)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MbnpError("to compare with PyTorch, install it: pip install torch") from None
    return torch


# --- what the caller gave ---


def _checked(torch: Any, net: Any, module: Any, x: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x in float64 and the labels as an array; MbnpError for what cannot be compared."""
    if not isinstance(net, Network):
        raise MbnpError(f"net must be a network of mbnp, got {type(net).__name__}; for a layer, see gradcheck.layer")
    if not isinstance(module, torch.nn.Module):
        raise MbnpError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not module.training:
        raise MbnpError("the module is in eval mode, but gradients are those of training: call module.train()")
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise MbnpError(f"the module's {name or 'dropout'} drops at random in training: set its p to 0")
    for name, layer in net.leaves():
        if isinstance(layer, Dropout) and layer.rate > 0:
            raise MbnpError(f"{name} drops at random in training, and others than PyTorch: set its rate to 0")
    if not isinstance(x, np.ndarray):
        net.check_input(x)
    (x,), labels = finite.in_float64([x]), np.asarray(labels)
    if x.dtype != np.float64:
        raise MbnpError(f"x is {x.dtype}: give normalised images, in float32 or float64 (datasets.normalise)")
    if labels.ndim == 2:
        hint = "give each image's class as a number, labels.argmax(axis=1) if these are one-hot"
        raise MbnpError(f"labels have the shape {labels.shape}: {hint}")
    return x, labels


def _partners(net: Network, module: Any, names: Mapping[str, str] | str) -> dict[str, str]:
    """Return the module's name of each array of `net`; MbnpError unless every array has a partner of its shape."""
    state = torch_names.to_torch(net)
    if isinstance(names, str):
        partners = dict(zip(state, torch_names.to_torch(net, names), strict=True))
    elif not isinstance(names, Mapping):
        raise MbnpError(f'names must be "mbnp", "timm" or a dict {{layer of net: layer of module}}, got {names!r}')
    else:
        _check_names(net, names)
        partners = {name: _renamed(name, names) for name in state}
    theirs = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    statistics = [name for name in buffers if name.rpartition(".")[2] in ("running_mean", "running_var")]
    alone = [name for name, other in partners.items() if other not in theirs | buffers]
    left = [other for other in [*theirs, *statistics] if other not in partners.values()]
    if alone or left:
        raise MbnpError(_unpaired(alone, left))
    if len(set(partners.values())) < len(partners):
        raise MbnpError("two arrays of the network have the same partner in the module: name each layer of it once")
    for name, other in partners.items():
        shape, expected = tuple((theirs | buffers)[other].shape), tuple(state[name].shape)
        if shape != expected:
            raise MbnpError(f"{name} has the shape {expected} in PyTorch's layout, but the module's {other} {shape}")
    return partners


def _check_names(net: Network, names: Mapping[str, str]) -> None:
    layers = [name for name, _ in net.leaves()]
    for key in names:
        if not any(f"{name}.".startswith(f"{key}.") for name in [*layers, *net.variables()]):
            raise MbnpError(f"names has {key!r}, which is no layer of the network: they are {_few(layers)}")


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return the partner of an array, by the longest name in `names` that it begins with."""
    key = max((key for key in names if f"{name}.".startswith(f"{key}.")), key=len, default="")
    return f"{names[key]}{name[len(key) :]}".lstrip(".") if key else name


def _unpaired(alone: Sequence[str], left: Sequence[str]) -> str:
    """Say which arrays of the network are alone, and which of the module are left."""
    whose = [f"{_few(of)} of the {what}" for what, of in (("network", alone), ("module", left)) if of]
    hint = "the other lacks a layer, a bias or running statistics"
    if alone and left:
        hint = f"pair layers by names={{{alone[0].rpartition('.')[0]!r}: {left[0].rpartition('.')[0]!r}, ...}}"
    return f"no partner for {' and '.join(whose)}: {hint}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_modes(net: Network, module: Any, partners: Mapping[str, str]) -> None:
    """Raise MbnpError where a BatchNorm normalises by the batch in one network and by its statistics in the other."""
    for name, layer in net.leaves():
        if isinstance(layer, BatchNorm):
            other = partners[f"{name}.weight"].rpartition(".")[0]
            training = module.get_submodule(other).training
            if training and layer.weight.frozen:
                hint = f"call eval() on the module's {other}"
                raise MbnpError(f"{name} is frozen and normalises by its running statistics: {hint}")
            if not training and not layer.weight.frozen:
                raise MbnpError(f"{name} learns, but the module's {other} is in eval mode: call module.train()")


# --- a step of each ---


def _run(net: Network, x: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return what a training step computes, the gradients in the place of the parameters."""
    net.check_input(x)
    output = net.forward(x, train=True)
    loss = cross_entropy.forward(output, labels)
    dx = net.backward(cross_entropy.backward(output, labels))
    if dx is None:
        raise MbnpError("the network's backward returned None instead of the gradient of x: is its return missing?")
    found = {"output": output, "loss": np.asarray(loss), "dx": dx}
    for name, variable in net.variables().items():
        if not isinstance(variable, Parameter):
            found[name] = variable.value
        elif not variable.frozen:
            found[name] = variable.grad
    return found


def _run_torch(torch: Any, module: Any, x: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> Arrays:
    """Return output, loss and dx of the module; its gradients and statistics stay in it."""
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    output = _output(torch, "the module", module, [images], shape)
    loss = torch.nn.functional.cross_entropy(output, torch.tensor(labels.astype(np.int64)))
    loss.backward()
    dx = _gradient(images).transpose(0, 2, 3, 1)
    return {"output": output.detach().numpy(), "loss": loss.detach().numpy(), "dx": dx}


def _arrays(module: Any, net: Network, partners: Mapping[str, str]) -> Arrays:
    """Return the gradients and statistics of the module, by the names and in the layout of `net`."""
    owners, found = layouts.owners(net), {}
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for name, variable in net.variables().items():
        tensor = tensors[partners[name]]
        array = _gradient(tensor) if isinstance(variable, Parameter) else tensor.numpy()
        found[name] = layouts.convert(array, type(owners[name]), "torch", "mbnp") if name in owners else array
        if getattr(variable, "frozen", False):
            del found[name]
    return found


def _output(
    torch: Any, what: str, function: Callable, tensors: Sequence[Any], shape: tuple[int, ...], hint: str = ""
) -> Any:
    """Return function(*tensors), with its gradients to come; MbnpError if it is no tensor of this shape."""
    try:
        with torch.enable_grad():
            y = function(*tensors)
    except Exception as error:  # PyTorch raises what it likes, and so may a function of the caller
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        line = [type(error).__name__, *str(error).strip().splitlines()[:1]]
        raise MbnpError(f"{what} does not take tensors of {shapes}: {': '.join(line)}") from error
    got = tuple(y.shape) if isinstance(y, torch.Tensor) else f"a {type(y).__name__}"
    if got != shape:
        raise MbnpError(f"{what} returns {got} instead of {shape}{hint}")
    if y.dtype != torch.float64:
        raise MbnpError(f"{what} is given float64 and returns {y.dtype}: make its own tensors in the dtype of x")
    if not y.requires_grad:
        raise MbnpError(f"{what} returns a tensor without gradients: leave out detach, numpy and no_grad")
    return y


def _gradient(tensor: Any) -> np.ndarray:
    """Return the gradient of a tensor; zeros if nothing depends on it."""
    return np.zeros(tuple(tensor.shape)) if tensor.grad is None else tensor.grad.numpy()


# --- what differs ---


def _judged(
    found: Arrays, expected: Arrays, order: Mapping[str, str], learned: Collection[str], says: str, tol: float,
    more: Callable[[str], str] = lambda name: "",
) -> Errors:  # fmt: skip
    """Return all errors, or raise MbnpError for the first in `order` that is too large: what it is, and `more` of it.

    A gradient's measure is at least a thousandth of the largest entry of all of them: that of a bias before a BatchNorm
    is nothing but rounding.
    """
    largest = {name: np.abs(array).max(initial=0) for name, array in expected.items()}
    least = max((largest[name] for name in learned), default=0.0) / 1000
    by_entry = {}
    with np.errstate(invalid="ignore"):  # of infinities
        for name, array in expected.items():
            scale = max(largest[name], least) if name in learned else largest[name]
            by_entry[name] = np.abs(found[name] - array) / (scale or 1.0)
    errors = Errors({name: float(error.max(initial=0)) for name, error in by_entry.items()}, tol)
    wrong = errors.wrong()
    for name in (name for name in order if name in wrong):
        error = by_entry[name]
        at = tuple(int(k) for k in np.unravel_index(int(error.argmax()), error.shape))  # the first NaN, if there is one
        values = float(found[name][at]), float(expected[name][at])
        line = worst(order[name], at, values, (says, "PyTorch says"), float(error[at]), tol)
        raise MbnpError(f"{line}; {len(wrong)} of {len(errors)} arrays are wrong{more(name)}")
    return errors


def _suspects(net: Network, shape: tuple[int, ...], wrong: str) -> str:
    """Say whose backward finite differences find wrong, too.

    The gradients of later layers are right, so that it is the layer of the array `wrong`, or one of those between it
    and the next layer that learns, or that one's dx.
    """
    try:
        walked = list(net.walk(shape[1:]))
    except MbnpError:  # a layer of the caller's that does not know its shapes
        return ""
    begin = next((i for i, row in enumerate(walked) if wrong.startswith(f"{row[0]}.")), 0)  # 0 for dx
    rng, bad = np.random.default_rng(0), []
    for name, layer, shape_in, _ in walked[begin:]:
        try:
            finite.layer(layer, rng.standard_normal((shape[0], *shape_in)), entries=20)
        except MbnpError:
            bad.append(f"{name} ({type(layer).__name__})")
        if layer.trainable() and not wrong.startswith(f"{name}."):
            break
    if not bad:
        first = walked[begin][0]
        which = name if name == first else f"each layer from {first} to {name}"
        return f"; {which} agrees with finite differences by itself"
    return f"; finite differences find the backward of {' and '.join(bad)} wrong, too"
