"""Piano rolls as MIDI files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.files import read_bytes
from experiments.data.piano_rolls import KEYS, LOWEST, import_extra
from experiments.shared.options import InputError
from jaxrnn.files import write_atomically

_TICKS_PER_FRAME = 480  # a frame is a quarter note
_VELOCITY = 72
_MOST_FRAMES = 100_000
_DRUMS = 9  # the channel of percussion, whose notes are not pitches


def write_midi(path: Path, roll: np.ndarray, beats_per_minute: float = 80.0) -> None:
    """Write a roll [frames, KEYS] as a MIDI file of one track.

    A roll does not distinguish a repeated note from a sustained one; a key that sounds in
    consecutive frames becomes one sustained note.

    Raises:
      InputError: mido is not installed.
    """
    mido = import_extra("mido")
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute)))
    silence = np.zeros((1, roll.shape[1]), np.int8)
    changes = np.diff(np.concatenate([silence, roll.astype(np.int8), silence]), axis=0)
    last = 0
    for frame, change in enumerate(changes):
        for kind, sign in (("note_off", -1), ("note_on", 1)):
            for key in np.flatnonzero(change == sign):
                wait = (frame - last) * _TICKS_PER_FRAME
                message = mido.Message(kind, note=LOWEST + int(key), velocity=_VELOCITY, time=wait)
                track.append(message)
                last = frame
    track.append(mido.MetaMessage("end_of_track", time=(len(roll) - last) * _TICKS_PER_FRAME))
    contents = io.BytesIO()
    mido.MidiFile(ticks_per_beat=_TICKS_PER_FRAME, tracks=[track]).save(file=contents)
    write_atomically(path, contents.getvalue())


def read_midi(path: Path) -> np.ndarray:
    """The roll [frames, KEYS] uint8 of a MIDI file: what sounds at each quarter note, in all tracks
    but those of drums. Frames before the first note are left out.

    Raises:
      InputError: mido is not installed, or the file is not MIDI, has no note, is too long, or has
        notes outside the piano's range.
    """
    mido = import_extra("mido")
    content = read_bytes(path)
    try:
        file = mido.MidiFile(file=io.BytesIO(content))
        messages = list(mido.merge_tracks(file.tracks))
        notes = _find_notes(messages, file.ticks_per_beat)
    except (OSError, EOFError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{path} is not a MIDI file: {error}") from None
    if not notes:
        raise InputError(f"{path} has no note")
    low, high = min(note[2] for note in notes), max(note[2] for note in notes)
    if low < LOWEST or high >= LOWEST + KEYS:
        raise InputError(
            f"{path} has the notes {low} to {high}, expected {LOWEST} to {LOWEST + KEYS - 1}"
        )
    first = min(note[0] for note in notes)
    last = max(note[1] for note in notes)
    if last - first > _MOST_FRAMES:
        raise InputError(f"{path} lasts {last - first} quarter notes, expected at most 100,000")
    roll = np.zeros((last - first, KEYS), np.uint8)
    for start, stop, pitch in notes:
        roll[start - first : stop - first, pitch - LOWEST] = 1
    return roll


def _find_notes(messages: list[Any], ticks_per_beat: int) -> list[tuple[int, int, int]]:
    """The first frame of each note, the one after its last, and its pitch. A note that is shorter
    than a frame, and sounds at no quarter note, is left out."""
    notes: list[tuple[int, int, int]] = []
    sounding: dict[tuple[int, int], int] = {}
    now = 0
    for message in messages:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        place = message.channel, message.note
        if place in sounding:
            start, stop = (-(-tick // ticks_per_beat) for tick in (sounding.pop(place), now))
            if stop > start:
                notes.append((start, stop, message.note))
        if message.type == "note_on" and message.velocity:
            sounding[place] = now
    return notes
