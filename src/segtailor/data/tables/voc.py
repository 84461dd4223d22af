"""The 21 classes of Pascal VOC, and the rule by which VOC colours any number of labels."""

from __future__ import annotations

from segtailor.files import Color

NAMES: tuple[str, ...] = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def label_color(label: int) -> Color:
    """Return VOC's colour of ``label``, 0 to 255: its bits, lowest first, are the highest of red, green, blue, red, ...

    >>> [label_color(label) for label in (0, 1, 2, 20)]
    [(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 64, 128)]
    """
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return (color[0], color[1], color[2])


CLASSES: tuple[tuple[str, Color], ...] = tuple((name, label_color(label)) for label, name in enumerate(NAMES))
