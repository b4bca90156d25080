"""Large files of a hub, fetched range by range into the cache, so that a call goes on where an earlier one stopped.

The library keeps whole files, and begins a file anew that did not come whole; the shards of a model have gigabytes.
Here the bytes that came stay in the cache under a name of ours, until the file is whole and has its checksum; then it
is one of the library's blobs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .checksums import HubFile, sha256_of

RANGE_BYTES = 16 << 20  # of one request, and all that is held in memory of a file
FILES = 4  # at a time
TRIES = 5  # of one request, with pauses that double from `PAUSE` seconds on
PAUSE = 1.0
PART = ".part"  # suffix of what has not come whole


class NoRanges(Exception):
    """The server sends whole files alone."""


def fetch_large(repo: str, commit: str, files: Sequence[HubFile], blobs: Path) -> None:
    """Fetch files that have a SHA-256 into a folder of blobs, where each gets it as its name.

    Raises
    ------
    DownloadError
        A file that has come whole has another checksum, twice.
    NoRanges
        The server does not know ranges.
    Exception
        What the library raises, after several tries, where a request fails.
    """
    from tqdm import tqdm

    blobs.mkdir(parents=True, exist_ok=True)
    total, there = sum(f.bytes for f in files), sum(part_bytes(blobs, f) for f in files)
    stop = threading.Event()
    with (
        tqdm(total=total, initial=there, unit="B", unit_scale=True, desc=repo, disable=not sys.stderr.isatty()) as bar,
        ThreadPoolExecutor(FILES) as pool,
    ):
        runs = [pool.submit(_fetch_one, repo, commit, file, blobs, bar, stop) for file in files]
        try:
            for run in runs:
                run.result()
        except BaseException:
            stop.set()  # the others end after the request under way; what they have stays
            raise


def part_bytes(blobs: Path, file: HubFile) -> int:
    """How much of a file an earlier call has left."""
    part = blobs / f"{file.sha256}{PART}"
    return part.stat().st_size if file.sha256 and part.is_file() else 0


def _fetch_one(repo: str, commit: str, file: HubFile, blobs: Path, bar: Any, stop: threading.Event) -> None:
    part, found = blobs / f"{file.sha256}{PART}", None
    for _ in range(2):
        if part_bytes(blobs, file) > file.bytes:
            part.unlink()
        with part.open("ab") as stream:
            while (start := stream.tell()) < file.bytes:
                if stop.is_set():
                    return
                data = _range(repo, commit, file, start, min(start + RANGE_BYTES, file.bytes))
                stream.write(data)
                stream.flush()
                bar.update(len(data))
        found = sha256_of(part)
        if found == file.sha256:
            part.replace(blobs / str(file.sha256))
            return
        part.unlink()
    raise DownloadError(
        f"{repo}: {file.name}: its SHA-256 is {found}, expected {file.sha256}, twice: look at the disk and at what "
        "lies between here and the hub"
    )


def _range(repo: str, commit: str, file: HubFile, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file."""
    for left in reversed(range(TRIES)):
        try:
            return _ask(repo, commit, file.name, start, stop)
        except NoRanges:
            raise
        except Exception as error:  # whatever the library's client raises; which one that is differs by version
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if not left or (400 <= status < 500 and status not in (408, 429)):
                raise
            time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def _ask(repo: str, commit: str, name: str, start: int, stop: int) -> bytes:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    response = get_session().get(hf_hub_url(repo, name, revision=commit), headers=headers, timeout=60)
    hf_raise_for_status(response)
    if response.status_code != 206 or len(response.content) != stop - start:
        raise NoRanges
    return response.content
