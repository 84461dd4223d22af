"""``segtailor data check``: everything that is wrong with images and masks, found before it costs a day."""

from __future__ import annotations

from segtailor.data.checkup.checkup import check_data
from segtailor.data.checkup.report import CheckReport

__all__ = ["CheckReport", "check_data"]
