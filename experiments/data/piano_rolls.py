"""Polyphonic piano rolls of 88 keys: Bach's chorales, or a file in the field's standard format.

A roll [frames, 88] of 0 and 1 says which keys of the piano, MIDI numbers 21 to 108, sound.

The chorales are those in four parts that music21 includes, each transposed to C major or A minor
according to its key signature, by at most six semitones. A frame is what sounds at a quarter note,
counted from the first complete one; repeats are not written out. The catalogue number (BWV) decides
the split: numbers that end in 0 or 1 are for testing, in 2 or 3 for validation, and the others for
training. A version of an earlier chorale is left out: one of whose windows of four frames more than
half occur in the earlier one, in any key.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.mat import read_cells
from experiments.shared.options import InputError
from experiments.shared.output import Tick

KEYS = 88
LOWEST = 21
"""The MIDI number of the lowest key."""

_VOICES = 4
_WINDOW, _SHARED = 4, 0.5  # frames, and the shared windows that make two pieces versions of one
_SPLIT_OF_DIGIT = ("test", "test", "valid", "valid", *["train"] * 6)
_VARIABLES = {"train": "traindata", "valid": "validdata", "test": "testdata"}


class PianoRolls(NamedTuple):
    """Pieces [frames, KEYS] uint8, each of at least two frames, in three splits."""

    name: str
    train: list[np.ndarray]
    valid: list[np.ndarray]
    test: list[np.ndarray]


def import_extra(module: str) -> Any:
    """Import a module of the extra `music`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InputError(
            f"{package} is not installed: pip install -e '.[experiments,music]'"
            + ("; or give --data FILE.mat" if package == "music21" else "")
        ) from None


def pitches_of(roll: np.ndarray) -> list[list[int]]:
    """The MIDI numbers of the keys that sound in each frame."""
    return [[LOWEST + int(key) for key in np.flatnonzero(frame)] for frame in roll]


def roll_of(pitches: Sequence[Sequence[int]]) -> np.ndarray:
    """The roll [frames, KEYS] that `pitches_of` describes."""
    roll = np.zeros((len(pitches), KEYS), np.uint8)
    for frame, sounding in zip(roll, pitches, strict=True):
        frame[np.asarray(sounding, int) - LOWEST] = 1
    return roll


def shift_keys(roll: np.ndarray, semitones: int) -> np.ndarray:
    """The roll raised by some semitones; keys that leave the piano are lost."""
    shifted = np.roll(roll, semitones, axis=-1)
    if semitones > 0:
        shifted[..., :semitones] = 0
    elif semitones < 0:
        shifted[..., semitones:] = 0
    return shifted


# Bach's chorales


def load_chorales(tick: Tick) -> PianoRolls:
    """The chorales that music21 includes; reading them takes up to a minute.

    Raises:
      InputError: music21 is not installed.
    """
    corpus = import_extra("music21.corpus")
    paths = [path for path in corpus.getComposer("bach") if _catalogue_number(path.name)]
    paths = sorted(
        (path for path in paths if path.suffix in (".mxl", ".xml")),
        key=lambda path: (_catalogue_number(path.name), path.name),
    )
    splits: dict[str, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    before: list[set[bytes]] = []
    for number, path in enumerate(paths):
        tick(number / len(paths), f"reading chorale {number + 1} of {len(paths)}")
        score = corpus.parse(path)
        if len(score.parts) != _VOICES:
            continue
        roll = _read_score(score)
        windows = _windows_of(roll)
        if any(_share(windows, others) > _SHARED for others in before):
            continue
        before.append(windows)
        splits[_SPLIT_OF_DIGIT[_catalogue_number(path.name)[0] % 10]].append(roll)
    return PianoRolls("Bach's chorales", **splits)


def _catalogue_number(name: str) -> tuple[int, ...]:
    """The numbers in a file's name: (10, 7) for bwv10.7.mxl; () without a number."""
    match = re.match(r"bwv(\d+)(?:\.(\d+))?", name)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def _read_score(score: Any) -> np.ndarray:
    """The roll of a score, in C major or A minor."""
    sharps = next(iter(score.recurse().getElementsByClass("KeySignature"))).sharps
    shift = (5 - 7 * sharps) % 12 - 5  # semitones: -5 to 6
    upbeat = float(score.parts[0].getElementsByClass("Measure").first().duration.quarterLength) % 1
    notes = [  # the first frame and the one after the last, and the key
        (
            math.ceil(float(note.offset) - upbeat - 1e-6),
            math.ceil(float(note.offset + note.quarterLength) - upbeat - 1e-6),
            pitch.midi + shift - LOWEST,
        )
        for part in score.parts
        for note in part.flatten().notes
        for pitch in note.pitches
    ]
    roll = np.zeros((max(stop for _, stop, _ in notes), KEYS), np.uint8)
    for start, stop, key in notes:
        roll[max(start, 0) : stop, key] = 1
    return roll


def _windows_of(roll: np.ndarray) -> set[bytes]:
    """The windows of a roll, independent of its key: each without the keys outside its range."""
    windows = set()
    for start in range(max(len(roll) - _WINDOW, 0) + 1):
        window = roll[start : start + _WINDOW]
        played = np.flatnonzero(window.any(axis=0))
        low, high = (played[0], played[-1] + 1) if played.size else (0, 0)
        windows.add(window[:, low:high].T.tobytes())  # key by key: the bytes tell the range
    return windows


def _share(ours: set[bytes], theirs: set[bytes]) -> float:
    return len(ours & theirs) / min(len(ours), len(theirs))


# The field's standard files


def read_mat(path: Path) -> PianoRolls:
    """The pieces of a .mat file with cell arrays traindata, validdata and testdata.

    A piece of fewer than two frames contains nothing to predict and is left out.

    Raises:
      InputError: the file cannot be used; names the variable, the piece and the frame.
    """
    cells = read_cells(path, tuple(_VARIABLES.values()))
    splits = {split: _check_pieces(path, name, cells[name]) for split, name in _VARIABLES.items()}
    return PianoRolls(path.stem, **splits)


def _check_pieces(path: Path, name: str, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    pieces = []
    for number, item in enumerate(items, 1):
        where = f"{path}, {name}, piece {number}"
        if item.size == 0:
            continue
        if item.ndim != 2 or item.shape[1] != KEYS:
            turned = "; transposed?" if item.shape[0] == KEYS else ""
            shape = " x ".join(map(str, item.shape))
            raise InputError(f"{where}: {shape}, expected frames x {KEYS}{turned}")
        wrong = (item != 0) & (item != 1)
        if wrong.any():
            frame, key = np.argwhere(wrong)[0]
            raise InputError(
                f"{where}, frame {frame + 1}, key {key + 1}: {item[frame, key]}, expected 0 or 1"
            )
        if len(item) > 1:
            pieces.append(np.ascontiguousarray(item, np.uint8))
    if not pieces:
        raise InputError(f"{path}, {name}: no piece of at least two frames")
    return pieces
