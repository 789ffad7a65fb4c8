"""What a person hands in and cannot be used is refused by name and place; nothing is touched."""

import numpy as np
import pytest

from experiments import movies
from experiments.__main__ import main
from experiments.data.characters import encode, measure_counts
from experiments.data.files import read_text
from experiments.data.series import read_csv
from experiments.shared.options import InputError, write_config

ROWS = "".join(f"{year},{np.sin(year):.4f},{year % 7}\n" for year in range(1900, 1960))
TABLE = "year,height,other\n" + ROWS
WORDS = "The sea, the sea, and the white whale of the sea. " * 100


def change(line, text, table=TABLE):
    """The table with its line `line`, from 1, replaced."""
    lines = table.splitlines(keepends=True)
    lines[line - 1] = text
    return "".join(lines)


# what, the file's content, options, what the message says besides the file's name
CSV = [
    ("empty", "", (), ["is empty"]),
    ("blank lines", "\n\n\n", (), ["line 1", "header"]),
    ("a zero byte", TABLE[:500] + "\0", (), ["line 35", "zero byte"]),
    ("UTF-16", TABLE.encode("utf-16"), (), ["line 1", "zero byte"]),
    ("Latin-1", TABLE.replace("1901", "\xe9").encode("latin-1"), (), ["line 3", "0xe9"]),
    ("an archive", b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)), (), ["line 1", "zero byte"]),
    ("a picture", b"\x89PNG\r\n\x1a\n\xff\xff", (), ["line 1", "0x89"]),
    ("a header alone", "year,height,other\n", (), ["height", "no value"]),
    ("half a header", "year,hei", (), ["line 1", "'height'", "year, hei"]),
    ("no header", ROWS, (), ["line 1", "no column named 'height'"]),
    ("two such columns", TABLE.replace("other", "height", 1), (), ["line 1", "2 columns"]),
    ("semicolons", TABLE.replace(",", ";"), (), ["line 1", "no column"]),
    ("a row cut short", change(9, "1907,0.5\n"), (), ["line 9", "2 fields, expected 3"]),
    (
        "a word below a field of two lines",
        change(9, '"19\n07",0.5,3\n1908,tall,3\n'),
        (),
        ["line 11", "'height'", "'tall'"],
    ),
    ("a file cut short", TABLE[:-12], (), ["line 61", "fields, expected 3"]),
    ("a row too long", change(9, "1907,0.5,3,4\n"), (), ["Expected 3 fields in line 9, saw 4"]),
    ("a quote left open", change(9, '1907,"0.5,3\n'), (), ["unexpected end"]),
    ("text behind a quote", change(9, '1907,"0.5"x,3\n'), (), ["expected after"]),
    ("a word", change(9, "1907,tall,3\n"), (), ["line 9", "'height'", "'tall'"]),
    ("a decimal comma", change(9, '1907,"0,5",3\n'), (), ["line 9", "'height'", "'0,5'"]),
    ("infinity", change(9, "1907,inf,3\n"), (), ["line 9", "'height'", "'inf'"]),
    ("too many digits", change(9, "1907,1e999,3\n"), (), ["line 9", "'height'", "1e999"]),
    ("a huge value", change(9, "1907,1e35,3\n"), (), ["'height'", "1e+35", "float32"]),
    ("a huge field", change(9, f"1907,{'1' * 200_000},3\n"), (), ["field larger than"]),
    ("a huge header", "x" * 200_000 + TABLE, (), ["field larger than"]),
    ("no value", "height\n" + "NA\n" * 60, (), ["'height'", "no value"]),
    ("one value", "height\n" + "3\n" * 60, (), ["'height'", "every value is 3"]),
    (
        "NaN at the beginning",
        "height\n" + "nan\n" * 52 + "1\n2\n" * 20,
        (),
        ["fit", "fewer than 4"],
    ),
    ("NaN at the end", "height\n" + "1\n2\n" * 40 + "nan\n" * 40, (), ["test", "fewer than 4"]),
    ("few rows", "height\n1\n2\n3\n", (), ["fewer than 4"]),
    ("a long horizon", TABLE, ("--horizon", "30"), ["--horizon is 30", "12 rows"]),
    ("a root of less than 0", TABLE, ("--transform", "sqrt"), ["--transform sqrt", "-0."]),
    ("a log of 0", "height\n" + "0\n1\n2\n" * 20, ("--transform", "log"), ["--transform log", "0"]),
    ("no such time", TABLE, ("--time", "day"), ["line 1", "'day'"]),
    ("a word as time", change(9, "then,1,2\n"), ("--time", "year"), ["line 9", "'year'", "'then'"]),
    ("time standing", change(9, "1906,1,2\n"), ("--time", "year"), ["line 9", "after the row"]),
    ("time missing", change(9, ",1,2\n"), ("--time", "year"), ["line 9", "'year'"]),
]

TEXT = [
    ("empty", "", (), ["is empty"]),
    ("a zero byte", WORDS + "\nab\0", (), ["line 2", "zero byte"]),
    ("Latin-1", (WORDS + "\n\n\xe9").encode("latin-1"), (), ["line 3", "0xe9"]),
    ("UTF-16", WORDS.encode("utf-16"), (), ["line 1", "zero byte"]),
    ("UTF-8 cut short", (WORDS + "\n\u20ac").encode()[:-1], (), ["line 2", "0xe2"]),
    ("a picture", b"\x89PNG\r\n\x1a\n\xff\xff", (), ["line 1", "0x89"]),
    ("one character", "a" * 5000, (), ["1 different characters"]),
    ("too many characters", "".join(map(chr, range(256, 6000))), (), ["different characters"]),
    ("too short", WORDS[:1000], (), ["1000 characters", "at least 1280"]),
    ("too short for its streams", WORDS, ("--streams", "500"), ["at least 10000"]),
]

MAT_HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
# data/test_piano_rolls.py has the other cases, of files that scipy writes and damage to them.
MAT = [
    ("empty", b"", ["truncated"]),
    ("a table", TABLE, ["Unknown mat file type"]),
    ("version 7.3", MAT_HEADER[:124] + b"\0\2IM" + bytes(512), ["v7.3"]),
    ("half a header", MAT_HEADER[:90], ["cannot be read"]),
    ("no variable", MAT_HEADER, ["no cell array traindata"]),
    ("a huge element", MAT_HEADER + b"\x0e\0\0\0\xff\xff\xff\x7f", ["could not read bytes"]),
    ("no zlib stream", MAT_HEADER + b"\x0f\0\0\0\x08\0\0\0" + bytes(8), ["zlib.error"]),
]


@pytest.fixture
def refuse(tmp_path, capsys, monkeypatch):
    """Runs an experiment that is to be refused; returns what it says."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"python -m experiments {arguments[0]}: ")
        assert output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before  # nothing is touched
        return output.err

    return call


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "options", "said"), [c[1:] for c in CSV], ids=[c[0] for c in CSV]
)
def test_a_malformed_csv_file_is_refused(refuse, tmp_path, content, options, said):
    path = write(tmp_path / "table.csv", content)
    message = refuse("forecast", "--csv", str(path), "--column", "height", *options)
    for part in ["table.csv", *said]:
        assert part in message


@pytest.mark.parametrize(
    ("content", "options", "said"), [c[1:] for c in TEXT], ids=[c[0] for c in TEXT]
)
def test_a_malformed_text_is_refused(refuse, tmp_path, content, options, said):
    path = write(tmp_path / "book.txt", content)
    message = refuse("text", "--text", str(path), *options)
    for part in ["book.txt", *said]:
        assert part in message


@pytest.mark.parametrize(("content", "said"), [c[1:] for c in MAT], ids=[c[0] for c in MAT])
def test_a_malformed_mat_file_is_refused(refuse, tmp_path, content, said):
    pytest.importorskip("mido")
    message = refuse("music", "--data", str(write(tmp_path / "rolls.mat", content)))
    for part in ["rolls.mat", *said]:
        assert part in message


@pytest.mark.parametrize(("experiment", "option"), [("forecast", "--csv"), ("text", "--text")])
@pytest.mark.parametrize(("name", "said"), [("none", "No such file"), (".", "directory")])
def test_a_file_that_is_none_is_refused(refuse, tmp_path, experiment, option, name, said):
    column = ("--column", "x") if experiment == "forecast" else ()
    message = refuse(experiment, option, str(tmp_path / name), *column)
    assert said in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("forecast", "--column", "height"), ["--csv", "missing"]),
        (("forecast", "--csv", "table.csv"), ["--column is missing"]),
        (("forecast", "--seeds", "0"), ["--seeds is 0", "greater than or equal to 1"]),
        (("forecast", "--test", "0.9"), ["--test is 0.9", "less than 0.5"]),
        (("forecast", "--learning-rate", "nan"), ["--learning-rate is nan"]),
        (("forecast", "--save-seconds", "-1"), ["--save-seconds is -1"]),
        (("text", "--layers", "17"), ["--layers is 17", "less than or equal to 16"]),
        (("text", "--dropout", "1"), ["--dropout is 1", "less than 1"]),
        (("text", "--prompt", "\u20ac"), ["--prompt", "'\u20ac'"]),
        (("text", "--prompt", ""), ["--prompt", "empty"]),
        (("movies", "--frames", "3"), ["--frames is 3", "22"]),
        (("movies", "--steps", "0"), ["--steps is 0"]),
        (("sweep", "--radii", "0"), ["--radii.0 is 0"]),
        (("sweep", "--resume", "nowhere"), ["config.json", "No such file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_out_of_range_is_refused(refuse, arguments, said):
    message = refuse(*arguments)
    for part in said:
        assert part in message


def test_a_folder_that_cannot_be_made_is_refused(refuse, tmp_path):
    path = write(tmp_path / "file", "")
    assert f"--folder {path}" in refuse("forecast", "--folder", str(path))


def test_a_run_of_another_experiment_or_a_broken_config_is_not_resumed(refuse, tmp_path):
    write_config(tmp_path, movies.Config())
    message = refuse("text", "--resume", str(tmp_path))
    assert "config.json" in message
    assert "--videos" in message
    for content in (b"", b"{", b"[]", b'{"seeds": 0}', b'{"steps": "many"}'):
        (tmp_path / "config.json").write_bytes(content)
        assert "config.json" in refuse("text", "--resume", str(tmp_path))


def test_missing_values_and_gaps_are_told_apart(tmp_path):
    lines = (
        "day,x,y\n2024-01-01,1,2\n2024-01-02,,3\n2024-01-03,NA,nan\n"
        "2024-01-09,4,5\n\n2024-01-10,6,7\n"
    )
    series = read_csv(write(tmp_path / "t.csv", lines), ["y", "x"], "day")
    np.testing.assert_array_equal(
        series.values, [[2, 1], [3, np.nan], [np.nan, np.nan], [5, 4], [7, 6]]
    )
    # The first row, a jump of the time, a blank line.
    assert series.begins.tolist() == [True, False, False, True, True]
    np.testing.assert_array_equal(np.diff(series.times), [1, 1, 6, 1])


def test_quotes_spaces_and_other_line_ends_are_read(tmp_path):
    content = b'\xef\xbb\xbf"a, b", c\r\n" 1.5",2\r\n-3e2 ,4\r\n'
    series = read_csv(write(tmp_path / "t.csv", content), ["a, b"])
    np.testing.assert_array_equal(series.values, [[1.5], [-300.0]])
    assert series.times.tolist() == [0, 1]


def test_a_text_is_read_whole_with_newlines(tmp_path):
    assert read_text(write(tmp_path / "t.txt", "a\r\nb\rc\n\u20ac")) == "a\nb\nc\n\u20ac"
    with pytest.raises(InputError, match=r"t\.txt is empty"):
        read_text(write(tmp_path / "t.txt", ""))


def test_characters_that_the_part_to_fit_has_not_share_one_code():
    text = encode("t", "abcabcxay", 6)
    assert text.alphabet == "abc\N{REPLACEMENT CHARACTER}"
    assert text.codes.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 3]


def test_counts_of_contexts_are_probabilities_that_learn():
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.tile([0, 1, 2, 1], 100), rng.integers(0, 3, 50)]).astype(np.int32)
    nats = measure_counts(codes, 400, 0, 3)
    assert nats["order 2"] < nats["order 1"] < nats["unigram"] < np.log(3)
    for context in ([0, 1], [2, 2]):  # every continuation of any context: they sum to 1
        total = 0.0
        for code in range(3):
            extended = np.array([*codes[:400], *context, code], np.int32)
            total += np.exp(-measure_counts(extended, 400, 402, 3)["order 2"])
        assert total == pytest.approx(1.0, abs=1e-12)
