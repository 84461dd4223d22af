"""Repositories of transformers, on the hub or in a folder: their files, and in one line what is wrong with them."""

from __future__ import annotations

import importlib
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from segtailor.errors import SegtailorError, reason

T = TypeVar("T")
EXTRA = 'pip install "segtailor[hf]"'
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def library(rest: str) -> Any:
    """Return the module transformers; SegtailorError with the command that installs it where it is missing."""
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise SegtailorError(f"hf:{rest} needs transformers: {EXTRA}") from error


def check_place(rest: str, weights: bool) -> None:
    """Raise SegtailorError unless ``rest`` is a repository's folder, with ``weights`` or without, or an id's form."""
    folder = Path(rest).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SegtailorError(f"{folder} has no config.json: it is no repository of transformers")
        if weights and not any((folder / name).is_file() for name in WEIGHTS):
            raise SegtailorError(f"{folder} has no weights: neither {WEIGHTS[0]} nor {WEIGHTS[2]}; fetch it whole")
    elif folder.is_file():
        raise SegtailorError(f"{folder} is a file; give the folder of the repository: hf:{folder.parent}")
    elif not REPOSITORY.fullmatch(rest):
        raise SegtailorError(f"no such folder: {rest}; a repository on the hub is named hf:OWNER/NAME")


def fetch(rest: str, action: Callable[[], T]) -> T:
    """Return what ``action`` reads from the repository ``rest``, silently; every failure is one SegtailorError."""
    try:
        with quiet():
            return action()
    except SegtailorError:
        raise
    except ImportError as error:
        raise SegtailorError(f"hf:{rest} needs a library that is missing ({_said(error)}): {EXTRA}") from error
    except Exception as error:  # hub, cache, files and configurations fail in many ways
        raise SegtailorError(_explained(rest, error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block without the libraries' warnings and progress bars."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    messages: Any = importlib.import_module("transformers.utils.logging")
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars, downloads = messages.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        messages.disable_progress_bar()
        hub.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            messages.enable_progress_bar()
        if not downloads:
            hub.enable_progress_bars()


def _said(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def _explained(rest: str, error: BaseException) -> str:
    errors: Any = importlib.import_module("huggingface_hub.errors")
    constants: Any = importlib.import_module("huggingface_hub.constants")
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any("trust_remote_code" in str(each) for each in chain):
        return f"hf:{rest} brings code of its own, which is never run; give a model of transformers' own classes"
    if any(isinstance(each, pickle.UnpicklingError) for each in chain):
        return (
            f"hf:{rest} is refused: its weights file holds pickled objects beside tensors, which could run code; "
            "where it was made, save it again with save_pretrained (safetensors)"
        )
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return f"hf:{rest} is gated: ask for access on its page, then log in with `hf auth login`"
    if any(isinstance(each, errors.RepositoryNotFoundError) for each in chain):
        return f"hf:{rest}: no such folder, and no public repository on the hub; check the name, or `hf auth login`"
    if not Path(rest).expanduser().is_dir() and any(isinstance(each, errors.LocalEntryNotFoundError) for each in chain):
        if constants.is_offline_mode():
            return (
                f"hf:{rest}: no such folder, not in the local cache, and offline mode is on (HF_HUB_OFFLINE); unset it "
                "once to fetch it, or give a folder"
            )
        return f"hf:{rest}: no such folder, not in the local cache, no connection to the hub; connect, or give a folder"
    return f"hf:{rest} cannot be read ({reason(error).strip()[:160]})"
