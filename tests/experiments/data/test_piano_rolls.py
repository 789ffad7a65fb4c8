"""Piano rolls: the field's .mat files, good and bad, Bach's chorales, and MIDI."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from experiments.data import mat, piano_rolls
from experiments.data.midi import write_midi
from experiments.data.piano_rolls import KEYS, LOWEST, load_chorales, pitches_of, read_mat, roll_of
from experiments.shared.options import InputError

SPLITS = ("traindata", "validdata", "testdata")


def rolls(count=3, seed=0, frames=12):
    rng = np.random.default_rng(seed)
    return [(rng.random((frames + place, KEYS)) < 0.05).astype(float) for place in range(count)]


def cells(items, column=False):
    array = np.empty((len(items), 1) if column else (1, len(items)), object)
    for place, item in enumerate(items):
        array[(place, 0) if column else (0, place)] = item
    return array


def mat_bytes(*, compressed=False, **changes):
    """A good file, but for `changes`; a change to None leaves a variable out."""
    variables = {name: cells(rolls(seed=seed)) for seed, name in enumerate(SPLITS)} | changes
    file = io.BytesIO()
    kept = {name: value for name, value in variables.items() if value is not None}
    scipy.io.savemat(file, kept, do_compression=compressed)
    return file.getvalue()


def with_train(*items):
    return mat_bytes(traindata=cells(list(items)))


def with_value(value):
    roll = rolls()[0]
    roll[4, 7] = value
    return with_train(rolls()[1], roll)


def element(kind, content):
    padding = b"" if kind == 15 else bytes(-len(content) % 8)
    return struct.pack("<2I", kind, len(content)) + content + padding


def matrix(kind, shape, name, content, flags=0):
    return element(
        14,
        element(6, struct.pack("<2I", flags | kind, 0))
        + element(5, struct.pack(f"<{len(shape)}i", *shape))
        + element(1, name)
        + content,
    )


def hand_made(variable):
    """A good file but for its traindata."""
    return mat_bytes(traindata=None) + variable


def piece_claiming(shape, *content):
    """A traindata of one piece, a matrix of doubles that claims this shape."""
    return hand_made(matrix(1, (1, 1), b"traindata", matrix(6, shape, b"", *content)))


def bomb(size):
    """A traindata of one piece of `size` zeros, a thousandth of them in the file."""
    head = struct.pack("<2I", 9, size)  # and the heads of the two matrices around it
    for shape, name, kind in (((size // 8, 1), b"", 6), ((1, 1), b"traindata", 1)):
        head = matrix(kind, shape, name, head)
        head = head[:4] + struct.pack("<I", len(head) - 8 + size) + head[8:]
    stream = zlib.compressobj()
    start = stream.compress(head) + stream.flush(zlib.Z_FULL_FLUSH)
    megabyte = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return hand_made(element(15, start + megabyte * (size >> 20)))


class Executed:
    """What a reader that unpickles it executes."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def old_format():
    file = io.BytesIO()
    scipy.io.savemat(file, {"traindata": rolls()[0]}, format="4")
    return file.getvalue()


MALFORMED = {
    "empty": (b"", "truncated"),
    "text": (b"0,1,0,1\n" * 40, "Unknown mat file type"),
    "a pickle": (pickle.dumps([Executed(), bytes(300)]), "read as a .mat file: (?!executed)"),
    "short": (b"\x00\x01\x02", "truncated"),
    "random bytes": (np.random.default_rng(1).bytes(4000), "Unknown mat file type"),
    "random bytes behind a header": (hand_made(b"\xa7\x33\x02\x01" * 99), "miMATRIX"),
    "header alone": (mat_bytes()[:128], "no cell array traindata; it has no variables"),
    "truncated": (mat_bytes()[:-1000], "could not read bytes"),
    "truncated in a tag": (mat_bytes()[:131], "could not read bytes"),
    "version 7.3": (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512), "v7.3"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "Unknown mat file type"),
    "version 4": (old_format(), "no cell array traindata; it has traindata .double"),
    "no testdata": (mat_bytes(testdata=None, other=np.eye(2)), "no cell array testdata.*other"),
    "matrix for a list": (mat_bytes(traindata=rolls()[0]), "no cell array traindata"),
    "struct for a list": (mat_bytes(validdata={"a": 1.0}), "validdata .struct"),
    "text for a list": (mat_bytes(testdata="pieces"), "testdata .char"),
    "no pieces": (mat_bytes(traindata=cells([])), "traindata: no piece of at least two frames"),
    "one frame": (with_train(rolls()[0][:1]), "traindata: no piece of at least two frames"),
    "87 keys": (with_train(rolls()[0][:, 1:]), "piece 1: 12 x 87, expected frames x 88"),
    "transposed": (with_train(rolls()[0].T), "piece 1: 88 x 12, expected frames x 88; transposed"),
    "three axes": (with_train(np.zeros((4, KEYS, 2))), "piece 1: 4 x 88 x 2"),
    "NaN": (with_value(np.nan), "traindata, piece 2, frame 5, key 8: nan, expected 0 or 1"),
    "infinite": (with_value(np.inf), "frame 5, key 8: inf"),
    "velocity": (with_value(64), "frame 5, key 8: 64.0"),
    "probability": (with_value(0.5), "frame 5, key 8: 0.5"),
    "negative": (with_value(-1), "frame 5, key 8: -1.0"),
    "text in a list": (with_train(rolls()[0], "a piece"), "traindata, item 2: not a full matrix"),
    "list in a list": (with_train(cells(rolls())), "item 1: not a full matrix"),
    "complex": (with_train(rolls()[0] + 1j), "item 1: not a full matrix of real numbers"),
    "sparse": (with_train(scipy.sparse.csc_array(rolls()[0])), "item 1: not a full matrix"),
    "huge list": (hand_made(matrix(1, (1, 1 << 30), b"traindata", b"")), "MemoryError"),
    "negative size": (hand_made(matrix(1, (1, -3), b"traindata", b"")), "ValueError"),
    "no shape": (hand_made(matrix(1, (), b"traindata", b"")), "could not read bytes"),
    "huge piece": (piece_claiming((1 << 30, KEYS), element(9, b"")), "ValueError"),
    "huge numbers": (piece_claiming((4, KEYS), struct.pack("<2I", 9, 0xFFFFFFF0)), "MemoryError"),
    "number for a list item": (
        hand_made(matrix(1, (1, 1), b"traindata", element(9, bytes(8)))),
        "Expecting matrix here",
    ),
    "unknown numbers": (piece_claiming((1, 1), element(77, bytes(8))), "crashed|Unknown"),
    "damaged compression": (hand_made(element(15, b"\x78\x9cgarbage here")), "zlib.error"),
    "truncated compression": (
        hand_made(element(15, zlib.compress(matrix(1, (1, 1), b"traindata", bytes(4096)))[:-9])),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_with_its_name_and_the_problem(name, tmp_path):
    content, problem = MALFORMED[name]
    path = tmp_path / "bad.mat"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_mat(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_does_not_exist_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.mat", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_mat(path)


def test_a_compression_bomb_is_refused_within_the_memory_limit(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    limit = 1 << 30
    monkeypatch.setattr(mat, "MEMORY_LIMIT", limit)
    path = tmp_path / "bomb.mat"
    path.write_bytes(mat_bytes())
    read_mat(path)  # is read within that limit
    path.write_bytes(bomb(3 << 30))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(InputError, match="MemoryError"):
        read_mat(path)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB
    assert peak <= max(before, limit >> 10)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_damaged_or_cut_anywhere_is_read_or_refused(compressed, tmp_path):
    small = {name: cells(rolls(2, frames=2)) for name in SPLITS}
    content = mat_bytes(compressed=compressed, **small)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.mat"
    for _ in range(10):
        damaged = bytearray(content)
        for place in rng.integers(128, min(len(content), 600), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, 2 * len(content))])
        try:
            read = read_mat(path)
        except InputError:
            continue
        assert all(piece.shape[1] == KEYS for piece in read.train)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int16, bool])
def test_a_good_file_is_read_as_it_was_written(dtype, column, compressed, tmp_path):
    path = tmp_path / "good.mat"
    written = {
        name: [roll.astype(dtype) for roll in rolls(seed=seed)] for seed, name in enumerate(SPLITS)
    }
    changes = {name: cells(items, column) for name, items in written.items()}
    path.write_bytes(mat_bytes(compressed=compressed, notes="ignored", **changes))
    read = read_mat(path)
    assert read.name == "good"
    for name, pieces in zip(SPLITS, (read.train, read.valid, read.test), strict=True):
        for piece, roll in zip(pieces, written[name], strict=True):
            assert piece.dtype == np.uint8
            np.testing.assert_array_equal(piece, roll)


def test_pitches_and_rolls_are_the_same():
    roll = rolls()[0].astype(np.uint8)
    roll[3] = 0
    np.testing.assert_array_equal(roll_of(pitches_of(roll)), roll)
    assert pitches_of(roll)[3] == []
    assert roll_of([[LOWEST, LOWEST + KEYS - 1]])[0, [0, -1]].tolist() == [1, 1]


def test_pieces_with_nothing_to_predict_are_left_out(tmp_path):
    path = tmp_path / "good.mat"
    good = rolls()[0]
    path.write_bytes(with_train(np.zeros((0, KEYS)), good[:1], np.zeros((0, 0)), good))
    (piece,) = read_mat(path).train
    np.testing.assert_array_equal(piece, good)


# Chorales


def parse(name):
    corpus = pytest.importorskip("music21.corpus")
    return corpus.parse(f"bach/{name}")


def test_a_chorale_is_brought_to_a_minor_in_quarter_notes():
    roll = piano_rolls._read_score(
        parse("bwv66.6")
    )  # in F sharp minor; 9 bars of 4/4, with an upbeat
    assert roll.shape == (36, KEYS)
    assert roll.sum(axis=1).max() <= 4
    classes = [set((np.flatnonzero(frame) + LOWEST) % 12) for frame in roll]
    assert classes[0] == {0, 4, 7}  # A major there, C major here


def test_versions_of_a_chorale_in_other_keys_are_known():
    one, other = (
        piano_rolls._windows_of(piano_rolls._read_score(parse(name)))
        for name in ("bwv244.15", "bwv244.17")
    )
    assert piano_rolls._share(one, other) > 0.5
    stranger = piano_rolls._windows_of(piano_rolls._read_score(parse("bwv66.6")))
    assert piano_rolls._share(one, stranger) < 0.1


def test_the_catalogue_number_is_that_of_the_file_name():
    number = piano_rolls._catalogue_number
    assert number("bwv10.7.mxl") == (10, 7)
    assert number("bwv250.mxl") == (250, 0)
    assert number("riemenschneider001.rntxt") == ()


def test_without_music21_the_extra_is_named(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(piano_rolls.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"music21.*pip install.*--data FILE\.mat"):
        load_chorales(lambda done, doing: None)


# MIDI


def test_midi_holds_a_key_that_sounds_on_and_ends_with_the_roll(tmp_path):
    mido = pytest.importorskip("mido")
    roll = np.zeros((5, KEYS), np.uint8)
    roll[1:3, 60 - LOWEST] = 1  # held for two frames
    roll[3, 64 - LOWEST] = 1
    path = tmp_path / "roll.mid"
    write_midi(path, roll, beats_per_minute=60.0)
    file = mido.MidiFile(path)
    events, now = [], 0.0
    for message in file:
        now += message.time
        if not message.is_meta:
            events.append((message.type, message.note, round(now, 6)))
    assert events == [
        ("note_on", 60, 1.0),
        ("note_off", 60, 3.0),
        ("note_on", 64, 3.0),
        ("note_off", 64, 4.0),
    ]
    assert file.length == pytest.approx(5.0)
