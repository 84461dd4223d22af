"""Masks that are read from MATLAB files, as COCO-Stuff 10k and Pascal Context publish theirs."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.data.read import UnreadableFile, narrow
from segtailor.errors import SegtailorError


def require_scipy() -> None:
    """Raise ``SegtailorError`` when MATLAB files cannot be read."""
    try:
        import scipy.io
    except ImportError:
        raise SegtailorError(
            'reading masks that are MATLAB files needs the extra data: pip install "segtailor[data]"'
        ) from None
    del scipy


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """Return the whole numbers of the variable ``key`` (H,W) of a MATLAB file; raises ``UnreadableFile``."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    damaged = (OSError, ValueError, TypeError, IndexError, NotImplementedError, EOFError, zlib.error, struct.error)
    try:
        mask = np.asarray(loadmat(path, variable_names=[key])[key])
    except FileNotFoundError as error:
        raise UnreadableFile("no such file") from error
    except KeyError as error:
        raise UnreadableFile(f"the MATLAB file holds no '{key}'") from error
    except (MatReadError, *damaged) as error:
        raise UnreadableFile("not a readable MATLAB file") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise UnreadableFile(f"'{key}' holds no whole numbers by height and width")
    return narrow(mask)
