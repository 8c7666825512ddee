"""Write the files that the Keras tests read: models with random weights, in three formats, and their outputs.

A script of its own, so that Keras, its threads and its warnings stay out of the tests' process:

    KERAS_BACKEND=torch python tests/weights/keras_models.py FOLDER
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers as L

from mbnp.weights.keras.build import IDENTITIES


def mobilenet(alpha: float, size: int, classes: int, **options: Any) -> keras.Model:
    shape = (size, size, 3)
    return keras.applications.MobileNet(input_shape=shape, alpha=alpha, weights=None, classes=classes, **options)


def transfer(frozen: int) -> keras.Model:
    """Train the tutorial's model: augmentation, preprocess_input, a base partly frozen, a new classifier."""
    base = mobilenet(0.25, 96, 1000, include_top=False)
    for layer in base.layers[:frozen]:
        layer.trainable = False
    x = inputs = L.Input((96, 96, 3))
    x = keras.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.2)])(x, training=False)
    x = keras.applications.mobilenet.preprocess_input(x)
    x = L.GlobalAveragePooling2D()(base(x, training=False))
    model = keras.Model(inputs, L.Dense(5)(L.Dropout(0.2)(x)))
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 96, 96, 3), "f"), np.zeros((2, 5), "f"), verbose=0)
    return model


def sequential() -> keras.Model:
    scale = L.Normalization(mean=[120.0, 110.0, 100.0], variance=[3600.0, 3900.0, 4100.0])
    base = mobilenet(0.25, 96, 1000, include_top=False)
    classifier = [
        L.GlobalAveragePooling2D(),
        L.Dense(16, activation="relu"),
        L.Dense(4, activation="softmax"),
    ]
    return keras.Sequential([L.Input((96, 96, 3)), scale, base, *classifier])


def rescaled() -> keras.Model:
    """Build a model with two layers of scaling, the second with statistics of data."""
    adapted = L.Normalization()
    adapted.adapt(np.random.default_rng(1).uniform(0.2, 0.7, (4, 40, 40, 3)).astype("f"))
    body = [L.Rescaling(1 / 255), adapted, *stem(8), L.Flatten(), L.Dense(3)]
    return keras.Sequential([L.Input((40, 40, 3)), *body])


def stem(channels: int) -> list[L.Layer]:
    return [L.Conv2D(channels, 3, strides=2, activation="relu"), L.BatchNormalization(), L.MaxPooling2D(3)]


def handmade() -> keras.Model:
    """Build a model of numbered layers with everything that keras.applications does differently."""
    x = inputs = L.Input((33, 33, 3))
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(8, 3, strides=2, padding="same")(x)))
    x = block(x, 16, 1, {"padding": "same"}, {}, L.ReLU())
    x = block(x, 24, 2, {"padding": "same", "use_bias": False}, {"epsilon": 1e-2}, L.Activation("relu"))
    x = L.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = block(x, 40, 2, {}, {"scale": False, "momentum": 0.9}, L.Activation("relu6"))
    x = block(x, 40, 1, {"padding": "same"}, {"center": False}, L.ReLU(max_value=3.0))
    x = L.Reshape((1, 1, 40))(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Softmax()(L.Flatten()(L.Conv2D(6, 1)(x))))


def old_swish() -> keras.Model:
    """Build a model with hard-swish and a gate as keras.applications wrote them before Keras 3."""

    def hard_sigmoid(x: Any) -> Any:
        return L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)

    x = inputs = L.Input((21, 21, 3))
    x = L.BatchNormalization()(L.Conv2D(8, 3, strides=2)(x))
    x = L.Multiply()([x, hard_sigmoid(x)])
    s = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(x))
    x = L.Multiply()([x, hard_sigmoid(L.Dense(8)(L.Dense(4, activation="relu")(s)))])
    x = L.Add()([L.ZeroPadding2D(1)(L.Conv2D(8, 3)(x)), x])
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))


def application(name: str, size: int, **options: Any) -> keras.Model:
    make = getattr(keras.applications, name)
    return make(input_shape=(size, size, 3), weights=None, classifier_activation=None, classes=5, **options)


def preprocessed() -> keras.Model:
    """Build a MobileNet whose preprocessing is in the model, as arithmetic."""
    inputs = L.Input((32, 32, 3))
    x = keras.applications.mobilenet.preprocess_input(inputs)
    return keras.Model(inputs, mobilenet(0.25, 32, 4, classifier_activation=None)(x))


def block(x: Any, c: int, stride: int, depthwise: dict, norm: dict, relu: L.Layer) -> Any:
    x = relu(L.BatchNormalization(**norm)(L.DepthwiseConv2D(3, strides=stride, **depthwise)(x)))
    return L.ReLU()(L.BatchNormalization(**norm)(L.Conv2D(c, 1, padding="same")(x)))


def separable() -> keras.Model:
    body = [L.SeparableConv2D(12, 3, padding="same", strides=2, activation="relu"), L.AveragePooling2D(2)]
    return keras.Sequential([L.Input((21, 21, 3)), *body, L.Flatten(), L.Dropout(0.1), L.Dense(5)])


def one_pixel() -> keras.Model:
    """Build a model whose last feature map is averaged by a window instead of globally."""
    body = [L.Conv2D(8, 3, padding="same"), L.ReLU(), L.AveragePooling2D((9, 9))]
    return keras.Sequential([L.Input((9, 9, 3)), *body, L.Conv2D(4, 1), L.Reshape((4,))])


def odds_and_ends() -> keras.Model:
    """Build a model with padding that no convolution takes in, and BatchNorm after Flatten."""
    body = [L.ZeroPadding2D((1, 2)), L.Conv2D(6, 3, padding="same", strides=2), L.ReLU(), L.ZeroPadding2D(1)]
    body += [L.MaxPooling2D(3, strides=2), L.Conv2D(5, 1, strides=2), L.Flatten(), L.BatchNormalization()]
    return keras.Sequential([L.Input((17, 17, 3)), *body, L.Dense(8, activation="relu6"), L.Dense(4)])


# What layers need to be made, where that is not nothing.
_RATE = ("Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout")
_FACTOR = ("Rotation", "Contrast", "Brightness", "Hue", "Saturation", "Sharpness", "ColorDegeneration")
NEEDS: dict[str, dict[str, Any]] = {
    **{name: {"rate": 0.5} for name in _RATE},
    **{f"Random{name}": {"factor": 0.5} for name in _FACTOR},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
    "RandomPosterization": {"factor": 3},
    "GaussianNoise": {"stddev": 0.5},
}


def identity(name: str) -> L.Layer:
    return getattr(L, name)(**NEEDS.get(name, {}))


def augmented() -> keras.Model:
    """Build a model with layers that do nothing in inference, and a sigmoid of one output.

    Keras on PyTorch can save these, and not all others.
    """
    names = ("Identity", "RandomRotation", "RandomTranslation", "RandomContrast", "RandomErasing", "GaussianNoise")
    body = [*map(identity, names), L.RandomCrop(12, 12), L.RandomFlip()]
    body += [L.RandAugment(), L.Conv2D(6, 3), L.SpatialDropout2D(0.5), L.ActivityRegularization()]
    return keras.Sequential([L.Input((12, 12, 3)), *body, L.GlobalMaxPooling2D(), L.Dense(1, activation="sigmoid")])


def resized() -> keras.Model:
    """Build a model that brings images of any size to its own, and answers for every class by itself."""
    body = [L.Resizing(20, 20), L.Rescaling(1 / 255), L.CenterCrop(16, 16), L.Conv2D(6, 3), L.Flatten()]
    return keras.Sequential([L.Input((None, None, 3)), *body, L.Dense(4), L.Activation("sigmoid")])


def renamed() -> keras.Model:
    """Build a model with a model inside whose layers were renamed since, and are frozen in part."""
    inner = [L.Conv2D(6, 1), L.BatchNormalization(), L.ReLU(), L.Conv2D(6, 1), L.BatchNormalization(), L.Conv2D(6, 1)]
    inside = keras.Sequential([L.Input((8, 8, 6)), *inner])
    for i, layer in enumerate(inside.layers):
        layer.trainable = i > 1
        layer.name = f"new_{layer.name}"
    return keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(6, 1), inside, L.GlobalAveragePooling2D(), L.Dense(3)])


def numbered_mobilenet() -> keras.Model:
    """Build MobileNet as one may from the paper: biases, numbers for names, a Dense classifier."""
    x = inputs = L.Input((64, 64, 3))
    x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(8, 3, strides=2, padding="same")(x)))
    for c, stride in zip(np.array(WIDTHS) // 4, STRIDES, strict=True):
        if stride == 2:
            x = L.ZeroPadding2D(((0, 1), (0, 1)))(x)
        x = L.DepthwiseConv2D(3, strides=stride, padding="same" if stride == 1 else "valid")(x)
        x = L.ReLU(6.0)(L.BatchNormalization()(x))
        x = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(int(c), 1)(x)))
    return keras.Model(inputs, L.Dense(7)(L.GlobalAveragePooling2D()(x)))


WIDTHS = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]

MODELS: dict[str, Callable[[], keras.Model]] = {
    "mobilenet-0.25-128-7": lambda: mobilenet(0.25, 128, 7),
    "mobilenet-0.5-224-10": lambda: mobilenet(0.5, 224, 10, classifier_activation=None),
    "mobilenet-1.0-224-1000": lambda: mobilenet(1.0, 224, 1000, classifier_activation=None),
    "mobilenet-0.5-97-3": lambda: mobilenet(0.5, 97, 3, classifier_activation=None),  # SAME at an odd size
    "mobilenet-no-top": lambda: mobilenet(0.25, 128, 1, include_top=False),
    "transfer": lambda: transfer(0),
    "transfer-half-frozen": lambda: transfer(40),
    "sequential": sequential,
    "rescaled": rescaled,
    "handmade": handmade,
    "separable": separable,
    "one-pixel": one_pixel,
    "odds-and-ends": odds_and_ends,
    "augmented": augmented,
    "resized": resized,
    "renamed": renamed,
    "numbered-mobilenet": numbered_mobilenet,
    "preprocessed": preprocessed,
    "old-swish": old_swish,
    "v2": lambda: application("MobileNetV2", 65, alpha=0.35),
    "v3-small": lambda: application("MobileNetV3Small", 64, alpha=0.75),
    "v3-large-minimalistic": lambda: application("MobileNetV3Large", 33, alpha=0.75, minimalistic=True),
    "v3-large": lambda: application("MobileNetV3Large", 64, alpha=0.75),
    "xception": lambda: application("Xception", 75),
}
APPLICATIONS = ("v2", "v3-small", "v3-large", "v3-large-minimalistic", "xception")
# Written by Keras's own exporter, too: BatchNorm as Mul and Add, and what scales pixels within the graph.
EXPORTED = ("preprocessed", *(("v2", "v3-small") if os.environ.get("MBNP_NIGHTLY") else ()))
# The others take pixels / 127.5 - 1.
TAKE_PIXELS = (
    "preprocessed",
    "v3-small",
    "v3-large",
    "v3-large-minimalistic",
    "transfer",
    "transfer-half-frozen",
    "sequential",
    "rescaled",
    "resized",
)


def randomise(model: keras.Model, rng: np.random.Generator, gain: float = 2.0) -> None:
    """Set weights that keep the data's size from layer to layer, and statistics that are not 0 and 1.

    gain: 2 where a ReLU follows each convolution; less where sums add up.
    """
    for variable in model.weights:
        shape, name = variable.shape, variable.path.rpartition("/")[2]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif name == "kernel" or name.endswith("_kernel"):
            depthwise = len(shape) == 4 and shape[3] == 1
            variable.assign(rng.normal(0, np.sqrt(gain / np.prod(shape[:2] if depthwise else shape[:-1])), shape))
        elif name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, shape))


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (4, 9, 9, 3)).astype(np.float32)
    for name in IDENTITIES:
        layer = identity(name)
        training = {"training": False} if "training" in inspect.signature(layer.call).parameters else {}
        if not np.array_equal(keras.ops.convert_to_numpy(layer(x, **training)), x):
            raise AssertionError(f"{name} changes images in inference")
    for name, make in MODELS.items():
        model = make()
        randomise(model, rng, 0.7 if name in APPLICATIONS else 2.0)
        shape = model.input_shape[1:] if model.input_shape[1] else (30, 26, 3)
        pixels = rng.uniform(0, 255, (3, *shape)).astype(np.float32)
        y = model.predict(pixels if name in TAKE_PIXELS else pixels / 127.5 - 1, verbose=0)
        last = model.layers[-1]
        activation = "softmax" if isinstance(last, L.Softmax) else getattr(last, "activation", keras.activations.linear)
        for layer in model.layers:
            if isinstance(layer, L.Resizing | L.CenterCrop):  # which mbnp leaves to whoever reads the images
                pixels = keras.ops.convert_to_numpy(layer(pixels))
        np.savez(folder / f"{name}.npz", pixels=pixels, y=y, activation=getattr(activation, "__name__", activation))
        model.save(folder / f"{name}.h5")
        model.save_weights(folder / f"{name}.weights.h5")
        model.save(folder / f"{name}.keras")
        if name in EXPORTED:
            model.export(folder / f"{name}.onnx", format="onnx", verbose=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
