import numpy as np
from PIL import Image, ImageDraw


def colour(label):
    return [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)][
        label % 7
    ]


def draw(image, answer, names):
    im = Image.fromarray(image)
    d = ImageDraw.Draw(im)
    if answer.boxes is not None:
        for k, b, n, s in zip(answer.labels.tolist(), answer.boxes.tolist(), names, answer.scores):
            d.rectangle(b, outline=colour(k), width=2)
            d.text((b[0], b[1]), f"{n} {s:.2f}")
    else:
        d.text((2, 2), f"{names[0]} {answer.scores[0]:.2f}")
    return np.asarray(im)
