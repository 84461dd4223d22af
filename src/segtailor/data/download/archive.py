"""What is known of a file before it is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Archive(NamedTuple):
    """A zip or tar file on the network, and where its parts go.

    ``parts`` maps paths in the archive (a folder ends with ``/``) to paths under the data set's root; the rest is left
    in it. ``length`` is in bytes; ``checksum`` is ``ALGORITHM:HEX`` as its publishers or independent projects state it,
    None where nobody does: then the length is taken from the server.
    """

    file: str
    urls: tuple[str, ...]
    length: int
    checksum: str | None
    parts: Mapping[str, str]
    unpacked: int
    """About the bytes that its parts take on the disk."""

    @property
    def exact(self) -> bool:
        """Whether ``length`` is known to the byte."""
        return self.checksum is not None
