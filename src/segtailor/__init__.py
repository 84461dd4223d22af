"""segtailor: distil a big semantic-segmentation model into a small one."""

__version__ = "0.1.0"
