"""Atomic writing of files, and the error for a file that cannot be read."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

StrPath = str | os.PathLike[str]


class FileFormatError(ValueError):
    """A file is damaged, or its format or contents are not those expected.

    The message names the file and the problem. A missing or unreadable file raises ``OSError``.
    """


def write_atomically(path: StrPath, data: bytes | bytearray | memoryview) -> None:
    """Write a file atomically: it is replaced as a whole or not at all.

    The data are written to a temporary file in the same folder and flushed to disk (fsync); the
    temporary file is renamed to `path`, and the folder is flushed. If the process or the machine
    stops at any point, `path` holds either the old or the new contents in full; once this function
    has returned, the new. An error leaves no temporary file behind; a crash may leave one, named
    ``.partial-*``, which can be deleted.

    A new file has the permissions that ``open`` would give it; a replaced file keeps its own. A
    symbolic link is followed, and the file that it points to is replaced. Other hard links to a
    replaced file keep the old contents.

    Args:
      path: the file, in an existing folder.
      data: its contents.

    Raises:
      TypeError: `data` is not bytes-like.
      OSError: an operation failed, or `path` is not a regular file. The old file is unchanged,
        unless the last operation failed, the flush of the folder: then the new file is in place.
    """
    rest = memoryview(data).cast("B")
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    permissions = _permissions(path)
    temporary = os.path.join(folder, f".partial-{secrets.token_hex(8)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.open(temporary, flags, 0o666 if permissions is None else 0o600)
        try:
            if permissions is not None:
                os.chmod(temporary, permissions)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        with _flushing(folder):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _permissions(path: str) -> int | None:
    """The permissions of a regular file; None if there is no file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    return stat.S_IMODE(mode)


@contextmanager
def _flushing(folder: str) -> Iterator[None]:
    """Flush a folder to disk after the block. It is opened before, while failure is harmless."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which cannot open folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system cannot flush folders
                raise
    finally:
        os.close(descriptor)
