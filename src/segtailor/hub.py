"""The Hugging Face Hub: asked without chatter, not waited for where it does not answer, its failures in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segtailor.errors import causes

_answered: set[str] = set()


@contextmanager
def ask_hub() -> Iterator[None]:
    """Run the block without huggingface_hub's messages; where the hub does not answer, only its cache is read.

    The library would try each file again for half a minute.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.CRITICAL)
    try:
        if not offline and not _answers(constants.ENDPOINT):
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _answers(endpoint: str) -> bool:
    """Return whether there is a hub at ``endpoint``; once it has answered it is not tried again."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if endpoint not in _answered:
        try:
            get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception:  # of requests or httpx, by version: no name, no route, no answer in time
            return False
        _answered.add(endpoint)
    return True


def explain_hub(error: BaseException, source: str) -> str:
    """Return what is wrong with ``source`` on the hub and what to do; empty for errors of another kind."""
    from huggingface_hub import constants

    chain = causes(error)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    absent = bool(kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"})
    if "GatedRepoError" in kinds or (absent and "gated" in str(error)):
        return "it is gated: ask for access on its page, then log in with `hf auth login`"
    if absent:
        return "no such folder, and no public repository on the hub; check the name, or log in with `hf auth login`"
    unreachable = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "TimeoutError"}
    if kinds & unreachable and not Path(source).expanduser().is_dir():
        why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "there is no connection"
        return f"what it needs from the hub is not in the local cache, and {why}; connect once, or give a folder"
    return ""
