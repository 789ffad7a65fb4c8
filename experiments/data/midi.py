"""Piano rolls as MIDI files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from experiments.data.piano_rolls import LOWEST, import_extra
from jaxrnn.files import write_atomically

_TICKS_PER_FRAME = 480  # a frame is a quarter note
_VELOCITY = 72


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
