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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Compile each method once, in the configuration of most terms: the code is the same in the others."""
    compiled = [item for item in items if getattr(item, "originalname", "") == "test_eager_equals_compiled"]
    chosen: dict[str, type[MethodTester]] = {}
    for item in compiled:
        tested = item.cls  # type: ignore[attr-defined]
        if tested.name not in chosen or len(tested.terms) > len(chosen[tested.name].terms):
            chosen[tested.name] = tested
    dropped = [item for item in compiled if chosen[item.cls.name] is not item.cls]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in a gloo group, started when the first test asks for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = Pair(port)
    yield workers
    workers.close()
