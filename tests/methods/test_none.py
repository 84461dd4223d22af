from __future__ import annotations

from .tester import MethodTester


class TestNone(MethodTester):
    name = "none"
    terms = frozenset()
