"""Published weights on this machine: found in the caches that other tools fill, fetched only when that is allowed."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from export.messages import first_line
from geoinfer.errors import InputError

_log = logging.getLogger(__name__)

_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]{8,})\.")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a file of weights is published.

    Attributes:
        repository: on the Hugging Face hub, `owner/name`, with `@revision` if it is not the main one; may be empty.
        filenames: in that repository, the one to be preferred first.
        url: where else; may be empty.
        url_cache: folder in which the tool that published it keeps what it fetched from `url`.
    """

    repository: str
    filenames: tuple[str, ...]
    url: str
    url_cache: Path

    @property
    def page(self) -> str:
        """Where a reader finds them, and their licence."""
        return f"huggingface.co/{self.repository.partition('@')[0]}" if self.repository else self.url


def find_weights(name: str, published: Published, *, allow_download: bool) -> Path:
    """The file, from a cache of this machine; only where it is not there, and downloads are allowed, from the network.

    Args:
        name: of the embedder, for errors.
        published: where the file is to be had.
        allow_download: without it no connection is opened.

    Raises:
        InputError: it is in no cache and must not be fetched, or cannot be.
    """
    cached = _cached(published)
    if cached is not None:
        return cached
    if not allow_download:
        repository, _ = _split(published)
        elsewhere = f"`hf download {repository}` on a machine with a network fills a cache to copy here; "
        raise InputError(
            f"the weights of {name} are not on this machine",
            hint=f"--allow-download fetches them from {published.page}; --weights FILE takes a file of them; "
            f"{elsewhere if repository else ''}--weights none exports random ones, for tests",
        )
    _log.info("fetching the weights of %s from %s", name, published.page)
    try:
        return _fetched(published)
    except Exception as error:  # what a network and its libraries raise is of many kinds
        reason = first_line(error)
        raise InputError(
            f"the weights of {name} cannot be fetched from {published.page}: {reason}",
            hint="--weights FILE takes a file of them",
        ) from error


def _cached(published: Published) -> Path | None:
    repository, revision = _split(published)
    if repository:
        for filename in published.filenames:
            found = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision)
            if isinstance(found, str) and Path(found).is_file():
                return Path(found)
    if published.url:
        kept = published.url_cache / _name_in(published.url)
        if kept.is_file():
            return kept
    return None


def _fetched(published: Published) -> Path:
    repository, revision = _split(published)
    if not repository:
        published.url_cache.mkdir(parents=True, exist_ok=True)
        target = published.url_cache / _name_in(published.url)
        known = _HASH_IN_NAME.search(target.name)
        torch.hub.download_url_to_file(published.url, str(target), hash_prefix=known[1] if known else None)
        return target
    *others, last = published.filenames
    for filename in others:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, filename, revision=revision))
        except LocalEntryNotFoundError:  # no network: the next file is not there either
            raise
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repository, last, revision=revision))


def _split(published: Published) -> tuple[str, str | None]:
    repository, _, revision = published.repository.partition("@")
    return repository, revision or None


def _name_in(url: str) -> str:
    return Path(urlparse(url).path).name
