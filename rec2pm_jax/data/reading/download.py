"""Downloads that resume after an interruption and are checked against published checksums.

A file is written as NAME.part and renamed once its size and checksum are right. The publisher states
the checksum. It is copied into the source, or read from a small file beside the data (`checksum_url`:
GroupLens' .md5 files, the Git LFS pointers of a repository of datasets).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in, remove_lock
from rec2pm_jax.os_errors import write_error

ATTEMPTS = 5
TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20
_HEADERS = {"User-Agent": "rec2pm_jax"}
_DIGEST = re.compile(r"\b(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{32})\b")


@dataclasses.dataclass(frozen=True)
class Download:
    """A file to download.

    Attributes:
      url: of the file.
      md5: its checksum, as its publisher states it; "" if unknown.
      checksum_url: a text that holds its md5 or sha256, read if `md5` is unknown.
      unpack: patterns of file names to extract from a .zip or .tar.gz; folders inside are ignored.
    """

    url: str
    md5: str = ""
    checksum_url: str = ""
    unpack: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the file."""
        return PurePosixPath(self.url).name


def fetch(item: Download, directory: Path, page: str, progress: bool = True) -> Path:
    """Download and unpack a file, unless that is done already.

    Args:
      item: the file.
      directory: where to put it; made if needed.
      page: a page with the file for people, for errors.
      progress: show a progress bar.

    Returns:
      The path of the downloaded file.

    Raises:
      UserError: the network or the server fails, the checksum differs, the archive is damaged or
        lacks a file, the disk is full, or another process downloads to this directory.
    """
    target = directory / item.name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        place = directory.with_name(f"{directory.name}.downloading")
        # Two processes would append to one partial file.
        with alone_in(place, f"The directory {directory}"):
            try:
                if not target.is_file():
                    _download(item, target, page, progress)
                if item.unpack:
                    _unpack(target, directory, item.unpack)
            finally:
                remove_lock(place)
    except OSError as error:  # network errors are turned into UserErrors where they happen
        raise write_error(target, error) from error
    return target


def _download(item: Download, target: Path, page: str, progress: bool) -> None:
    part = target.with_name(target.name + ".part")
    expected = item.md5 or (
        _read_published_digest(item.checksum_url, page) if item.checksum_url else ""
    )
    failures = furthest = 0
    while True:
        try:
            if _append_rest(item.url, part, progress):
                break
            reason = "the connection was closed early"
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        size = part.stat().st_size if part.exists() else 0
        failures = 1 if size > furthest else failures + 1  # progress renews the attempts
        furthest = max(furthest, size)
        if failures >= ATTEMPTS or not size:
            advice = "Check the network"
            if size:
                advice = f"{size:,} bytes are kept in {part}; run the command again to resume"
            raise UserError(
                f"Cannot download {item.url}: {reason}. {advice}, or fetch it by hand ({page}) and "
                "give --input."
            )
        time.sleep(min(2**failures, 30) / 10)
    if expected:
        found = _compute_digest(part, "md5" if len(expected) == 32 else "sha256")
        if found != expected:
            part.unlink()
            raise UserError(
                f"{item.url}: the checksum is {found}, its publisher states {expected}; the file was "
                f"deleted. Run the command again, or fetch it by hand ({page}) and give --input."
            )
    part.rename(target)


def _append_rest(url: str, part: Path, progress: bool) -> bool:
    """Request what `part` lacks and append it; return whether the file is complete now."""
    have = part.stat().st_size if part.exists() else 0
    headers = _HEADERS | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        size_of_file = re.search(r"/(\d+)$", error.headers.get("Content-Range") or "")
        if error.code != 416 or not have:
            raise
        if size_of_file and int(size_of_file[1]) == have:
            return True
        part.unlink()  # longer than the file, so no beginning of it
        return _append_rest(url, part, progress)
    with response:
        if response.status != 206:  # the server ignores ranges and sends the whole file
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                disable=not progress,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            size = file.tell()
    return total is None or size == total


def _read_published_digest(url: str, page: str) -> str:
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            text = response.read(10_000).decode(errors="replace")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"Cannot read the checksum {url}: {getattr(error, 'reason', error)}. Check the network, "
            f"or fetch the file by hand ({page}) and give --input."
        ) from error
    found = _DIGEST.search(text)
    if found is None:
        raise UserError(
            f"{url} holds no checksum; fetch the file by hand ({page}) and give --input."
        )
    return found[0].lower()


def _compute_digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _unpack(archive: Path, directory: Path, patterns: tuple[str, ...]) -> None:
    """Extract files from an archive, unless that is done already."""
    done = archive.with_name(archive.name + ".unpacked")
    if done.exists():
        return
    found = set()
    with _open_archive(archive) as members:
        for name, open_member in members:
            matched = [p for p in patterns if fnmatch.fnmatch(PurePosixPath(name).name, p)]
            if not matched:
                continue
            # Only the name is used, because a path inside an archive could point anywhere.
            target = directory / PurePosixPath(name).name
            part = target.with_name(target.name + ".part")
            with open_member() as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            part.rename(target)
            found.update(matched)
    absent = [pattern for pattern in patterns if pattern not in found]
    if absent:
        raise UserError(f"{archive} holds no {', '.join(absent)}.")
    done.touch()


@contextmanager
def _open_archive(archive: Path) -> Iterator[Iterator[tuple[str, Callable]]]:
    """Yield (name, function that opens the file) of the files in a .zip or .tar.gz."""
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                yield ((i.filename, lambda i=i: file.open(i)) for i in file.infolist())
        else:
            with tarfile.open(archive, "r|*") as file:  # a stream: one pass over gigabytes
                yield ((m.name, lambda m=m: file.extractfile(m)) for m in file if m.isfile())
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it and run again.") from error
