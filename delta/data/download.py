"""Downloads that are checked and then renamed into place: a file is there whole, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from delta.errors import DataError

__all__ = ["Download", "download"]

_CHUNK = 1 << 20
_SCHEMES = ("https", "http", "file")


@dataclass(frozen=True)
class Download:
    """A file on the network, and what it must be.

    Attributes:
        url: https, http or file.
        sha256: of the content, in hex.
    """

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the URL's path."""
        return Path(urllib.parse.urlsplit(self.url).path).name


def download(source: Download, folder: Path, *, timeout_s: float = 60.0) -> Path:
    """Fetch a file into a folder, unless it is there already with the right checksum.

    Args:
        source: what to fetch.
        folder: made where it is absent.
        timeout_s: seconds without a byte after which the transfer has failed.

    Returns:
        The file's path.

    Raises:
        DataError: the transfer fails or is cut, or the checksum is wrong; nothing half-written is left.
    """
    if urllib.parse.urlsplit(source.url).scheme not in _SCHEMES:
        raise DataError(f"{source.url}: expected a URL of {', '.join(_SCHEMES)}")
    target = folder / source.file_name
    partial: Path | None = None
    try:
        if target.is_file() and _sha256(target) == source.sha256:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=folder)
        partial = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            found = _fetch(source.url, file.fileno(), timeout_s)
            os.fsync(file.fileno())
        if found != source.sha256:
            raise DataError(
                f"{source.url}: wrong checksum (SHA-256 {found[:16]}…, expected {source.sha256[:16]}…); "
                "the file has changed or was damaged on the way: do not use it"
            )
        partial.chmod(0o644)
        partial.replace(target)
        partial = None
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{source.url}: the server answered {error.code} {error.reason}; try again later"
        ) from None
    except urllib.error.URLError as error:
        raise DataError(
            f"{source.url}: not reachable ({error.reason}); check the network or fetch it by hand"
        ) from None
    except http.client.HTTPException as error:
        raise DataError(f"{source.url}: the transfer failed ({type(error).__name__}); try again") from None
    except OSError as error:
        raise DataError(f"{source.url} to {target}: {error.strerror or error}; nothing was written") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, descriptor: int, timeout_s: float) -> str:
    """Copy a URL's content into a file descriptor; its SHA-256 in hex."""
    digest, length = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  the scheme is checked above
        declared = answer.headers.get("Content-Length")
        while chunk := answer.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
    if declared is not None and length != int(declared):
        raise DataError(f"{url}: the transfer was cut after {length} of {declared} bytes; try again")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
