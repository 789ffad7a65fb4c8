"""Reading the files that a user names."""

from __future__ import annotations

from pathlib import Path

from experiments.shared.options import InputError


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that is not empty.

    Raises:
      InputError: the file does not exist, is a folder or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not content:
        raise InputError(f"{path} is empty")
    return content


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, every line end a newline.

    Raises:
      InputError: as `read_bytes`, and for binary data or another encoding, with the line.
    """
    content = read_bytes(path)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: a zero byte, expected text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8 text"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
