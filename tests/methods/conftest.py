from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .processes import Pair
from .tester import EARLY, LATE, MethodTester


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a method's tests of ``progress`` one moment of the run, or two where the method has phases."""
    tested = metafunc.cls
    if tested is not None and issubclass(tested, MethodTester) and "progress" in metafunc.fixturenames:
        moments = {"early": EARLY, "late": LATE} if tested.phased else {"early": EARLY}
        metafunc.parametrize("progress", moments.values(), ids=moments.keys())


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in a gloo group, started when the first test asks for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = Pair(port)
    yield workers
    workers.close()
