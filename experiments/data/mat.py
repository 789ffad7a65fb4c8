"""Cell arrays of numeric matrices from MATLAB's .mat files of version 5, read and never executed.

Every size that a file declares is held against the bytes that are there before anything is made of
it, so that memory stays within a small multiple of the file, or of `LIMIT` where it is compressed.
Source: MathWorks, "MAT-File Format" (chapter 1, level 5); MATLAB's `-v6` and `-v7` are that.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from experiments.data.files import read_bytes
from experiments.shared.options import InputError

LIMIT = 1 << 29
"""Bytes at most of one variable, decompressed."""

_HEADER = 128
_NAME_PART = 4096  # bytes of a compressed variable that hold its name
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_CLASSES = (
    "unknown", "cell array", "struct", "object", "text", "sparse matrix", "double", "single",
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "object",
)  # fmt: skip
_CELL, _FIRST_NUMERIC, _LAST_NUMERIC = 1, 6, 15
_COMPLEX = 0x0800


class _Place(NamedTuple):
    """What is being read, for messages: a file, or a variable in it; and its byte order."""

    name: str
    order: str

    def refuse(self, position: int, problem: str) -> NoReturn:
        """Raise the error."""
        raise InputError(f"{self.name}, byte {position}: {problem}")


class _Matrix(NamedTuple):
    """The head of a matrix: what kind it is of, its shape, its name, and where its values begin."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    begin: int


def read_cells(path: Path, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The arrays in the cell arrays `names`, each in MATLAB's order.

    Raises:
      InputError: not such a file, a name that is not there, or something else under it; with the
        variable, the item and the byte.
    """
    content = read_bytes(path)
    place = _Place(str(path), _read_order(path, content))
    found: dict[str, list[np.ndarray]] = {}
    others = []
    for position, name, is_compressed, element in _read_variables(place, content):
        if name not in names:
            others.append(name)
            continue
        if name in found:
            place.refuse(position, f"{name} for the second time")
        if is_compressed:
            inside = place._replace(name=f"{path}, {name} decompressed")
            whole = _decompress(place, position, name, element)
            (begin, end), _ = _read_matrix_tag(inside, whole, 0, len(whole))
            found[name] = _read_cell_array(inside, whole, begin, end)
        else:
            begin = position + 8
            found[name] = _read_cell_array(place, content, begin, begin + len(element))
    for name in names:
        if name not in found:
            there = ", ".join(others[:8]) or "none"
            raise InputError(f"{path}: no variable {name}; others in the file: {there}")
    return found


def _read_order(path: Path, content: bytes) -> str:
    """The byte order that the header states."""
    if content.startswith(b"\x89HDF") or content[:10] == b"MATLAB 7.3":
        raise InputError(f"{path}: a .mat file of version 7.3 (HDF5); save it with -v7")
    if len(content) < _HEADER:
        raise InputError(f"{path}: {len(content)} bytes, but a .mat header has {_HEADER}")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise InputError(f"{path}, byte 124: not the header of a .mat file of version 5 (-v6, -v7)")
    return order


def _read_variables(place: _Place, content: bytes) -> Iterator[tuple[int, str, bool, memoryview]]:
    """Each variable's position, name, whether it is compressed, and its bytes."""
    view, position = memoryview(content), _HEADER
    while position < len(content):
        kind, size, begin = _read_tag(place, view, position, len(content))
        element = view[begin : begin + size]
        if kind == _COMPRESSED:
            try:
                start = zlib.decompressobj().decompress(element, _NAME_PART)
            except zlib.error as error:
                place.refuse(position, f"compressed data are damaged: {error}")
            inside = place._replace(name=f"{place.name}, in the data compressed at {position}")
            (head, _), _ = _read_matrix_tag(inside, memoryview(start), 0, LIMIT)
            name = _read_head(inside, memoryview(start), head, len(start)).name
        elif kind == _MATRIX:
            name = _read_head(place, view, begin, begin + size).name if size else ""
        else:
            place.refuse(position, f"an element of type {kind}, expected a variable")
        yield position, name, kind == _COMPRESSED, element
        position = begin + size


def _decompress(place: _Place, position: int, name: str, element: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(element, LIMIT + 1)
    except zlib.error as error:
        place.refuse(position, f"the compressed data of {name} are damaged: {error}")
    if len(content) > LIMIT:
        place.refuse(position, f"{name} is over {LIMIT >> 20} MiB decompressed")
    if not stream.eof:
        place.refuse(position, f"the compressed data of {name} are truncated")
    return memoryview(content)


def _read_cell_array(
    place: _Place, view: memoryview | bytes, begin: int, end: int
) -> list[np.ndarray]:
    view = memoryview(view)
    head = _read_head(place, view, begin, end)
    if head.kind != _CELL:
        place.refuse(begin, f"{head.name} is a {_describe(head.kind)}, expected a cell array")
    count = math.prod(head.shape)
    if count * 8 > end - head.begin:  # an item has 8 bytes at least
        place.refuse(begin, f"{head.name} is to have {count} items, more than its bytes can hold")
    items, position = [], head.begin
    for number in range(1, count + 1):
        inside = place._replace(name=f"{place.name}, {head.name}, item {number}")
        (first, last), position = _read_matrix_tag(inside, view, position, end)
        items.append(_read_numbers(inside, view, first, last))
    return items


def _read_numbers(place: _Place, view: memoryview, begin: int, end: int) -> np.ndarray:
    """A full real matrix, as a view of the bytes."""
    if begin == end:  # MATLAB's way to write an empty item
        return np.zeros((0, 0))
    head = _read_head(place, view, begin, end)
    if not _FIRST_NUMERIC <= head.kind <= _LAST_NUMERIC or head.is_complex:
        found = "complex matrix" if head.is_complex else _describe(head.kind)
        place.refuse(begin, f"a {found}, expected a full real matrix")
    if 0 in head.shape:  # what other sizes it declares is no matter
        return np.zeros((0, 0))
    kind, size, first = _read_tag(place, view, head.begin, end)
    if kind not in _TYPES:
        place.refuse(head.begin, f"numbers of the unknown type {kind}")
    dtype = np.dtype(place.order + _TYPES[kind])
    if size != math.prod(head.shape) * dtype.itemsize:
        shape = " x ".join(map(str, head.shape))
        place.refuse(head.begin, f"{size} bytes of {dtype.name} do not make {shape} numbers")
    return np.frombuffer(view[first : first + size], dtype).reshape(head.shape, order="F")


def _read_head(place: _Place, view: memoryview, begin: int, end: int) -> _Matrix:
    flags, after = _read_array(place, view, begin, end, _UINT32, "flags")
    if flags.size != 2:
        place.refuse(begin, f"{flags.size} flags of a matrix, expected 2")
    where = after
    shape, after = _read_array(place, view, after, end, _INT32, "shape")
    if not 2 <= shape.size <= 32 or shape.min() < 0:
        place.refuse(where, "the shape of a matrix is not two or more sizes")
    kind, size, first = _read_tag(place, view, after, end)
    if kind not in (1, 2):
        place.refuse(after, f"type {kind} for the name of a matrix")
    name = bytes(view[first : first + size]).decode("latin-1")
    shape_of = tuple(int(extent) for extent in shape)
    word = int(flags[0])
    return _Matrix(word & 0xFF, bool(word & _COMPLEX), shape_of, name, _next(after, first, size))


def _read_array(
    place: _Place, view: memoryview, position: int, end: int, expected: int, what: str
) -> tuple[np.ndarray, int]:
    kind, size, first = _read_tag(place, view, position, end)
    if kind != expected or size % 4:
        place.refuse(position, f"{size} bytes of type {kind} for the {what} of a matrix")
    dtype = np.dtype(place.order + _TYPES[kind])
    return np.frombuffer(view[first : first + size], dtype), _next(position, first, size)


def _read_matrix_tag(
    place: _Place, view: memoryview, position: int, end: int
) -> tuple[tuple[int, int], int]:
    """Where a matrix begins and ends, and where what follows it begins."""
    kind, size, first = _read_tag(place, view, position, end)
    if kind != _MATRIX:
        place.refuse(position, f"an element of type {kind}, expected a matrix")
    return (first, first + size), _next(position, first, size)


def _read_tag(place: _Place, view: memoryview, position: int, end: int) -> tuple[int, int, int]:
    """An element's type, its size in bytes and where its data begin; they end by `end`."""
    if position + 8 > min(end, len(view)):
        place.refuse(position, "the data end where an element was expected")
    kind, size = struct.unpack_from(f"{place.order}2I", view, position)
    first = position + 8
    if kind >> 16:  # the small form: size and type share a word, and the data follow in the next
        kind, size, first = kind & 0xFFFF, kind >> 16, position + 4
        if size > 4:
            place.refuse(position, f"a small element of {size} bytes, expected 4 at most")
    if first + size > end:
        place.refuse(position, f"an element of {size} bytes, but {end - first} are left")
    return kind, size, first


def _next(position: int, first: int, size: int) -> int:
    """Where the next element begins: all but compressed ones are padded to 8 bytes."""
    return position + 8 if first == position + 4 else first + -(-size // 8) * 8


def _describe(kind: int) -> str:
    return _CLASSES[kind] if kind < len(_CLASSES) else "matrix of an unknown kind"
