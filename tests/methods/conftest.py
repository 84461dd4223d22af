from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .processes import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in a gloo group, started when the first test asks for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = Pair(port)
    yield workers
    workers.close()
