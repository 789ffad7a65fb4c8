"""Files that survive: writing that loses nothing, and the error of a file that cannot be read."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

StrPath = str | os.PathLike[str]


class FileFormatError(ValueError):
    """A file is not what it should be: damaged, of another format, or of other contents.

    The message names the file and says what is wrong. A file that is missing, or that the system
    does not let one read, is an ``OSError`` as ever.
    """


def write_atomically(path: StrPath, data: bytes | bytearray | memoryview) -> None:
    """Write a whole file, or leave the one that is there as it is.

    The bytes go to a temporary file in the same folder, are flushed to disk (fsync), and take the
    name in one step (rename); then the folder is flushed. Whenever the process or the machine
    stops, the name stands for the old contents or for all of the new, and once this returns, for
    the new. An error leaves no temporary file; a crash can leave one, `.partial-*`, free to delete.

    A new file gets the permissions that ``open`` gives it, one that is replaced keeps its own. A
    symbolic link stays, and the file that it points to is replaced. Other hard links to a replaced
    file keep the old contents.

    Args:
      path: the file. Its folder exists.
      data: its contents.

    Raises:
      TypeError: `data` are no bytes.
      OSError: the system refuses a step, or `path` is not a regular file. The old file is as it
        was, except where flushing the folder, the last step, fails: then the new one is in place.
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
    """Those of a regular file; None where there is no file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    return stat.S_IMODE(mode)


@contextmanager
def _flushing(folder: str) -> Iterator[None]:
    """Flush a folder to disk after the block. It is opened before, when failing does no harm."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which cannot open folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which a file system without such a flush answers
                raise
    finally:
        os.close(descriptor)
