"""Atomic writing: every system call fails, or is the last before a crash, in turn."""

import ast
import contextlib
import errno
import inspect
import json
import os
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxrnn import files
from jaxrnn.files import write_atomically

OLD, NEW = b"old " * 500, b"the new contents " * 200
PIECE = 1000  # bytes per write, so that there are several writes


class System:
    """A stand-in for `os` that logs every function call.

    `before` and `after` receive the position, name and arguments of each call, and may raise. A
    write accepts at most `piece` bytes."""

    def __init__(self, before=None, after=None, piece=1 << 30, log=None, real=os):
        self._before, self._after, self._piece = before, after, piece
        self._real, self.log = real, [] if log is None else log

    def __getattr__(self, name):
        value = getattr(self._real, name)
        if isinstance(value, types.ModuleType):
            return System(self._before, self._after, self._piece, self.log, value)
        if not callable(value):
            return value

        def operation(*args, **options):
            place = len(self.log)
            self.log.append(name)
            if self._before:
                self._before(place, name, args)
            if name == "write":
                args = (args[0], args[1][: self._piece])
            try:
                return value(*args, **options)
            finally:
                if self._after:
                    self._after(place, name, args)

        return operation


def write(monkeypatch, path, data, **faults):
    """Write on a `System` with `faults`; return its log."""
    system = System(**faults)
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", system)
        write_atomically(path, data)
    return system.log


def log_of(monkeypatch, path):
    """The calls of a write without failures; afterwards the old contents are restored."""
    log = write(monkeypatch, path, NEW, piece=PIECE)
    path.write_bytes(OLD)
    return log


def failing(places, code):
    """A `before` or `after` that fails at the given positions."""

    def fault(place, name, args):
        if place in places:
            raise OSError(code, f"{os.strerror(code)} at {name}")

    return fault


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


# Without failures


@pytest.mark.parametrize("data", [b"", b"x", NEW, bytearray(NEW), memoryview(NEW)])
def test_a_file_holds_the_data_and_no_temporary_file_remains(path, data):
    write_atomically(path, data)
    write_atomically(str(path.with_name("other")), data)
    assert path.read_bytes() == path.with_name("other").read_bytes() == bytes(data)
    assert sorted(os.listdir(path.parent)) == ["file", "other"]


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_file_name_of_maximal_length_can_be_written(tmp_path):
    name = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_atomically(tmp_path / name, NEW)
    assert (tmp_path / name).read_bytes() == NEW


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_a_new_file_has_the_permissions_that_open_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "opened").write_bytes(NEW)
        write_atomically(tmp_path / "written", NEW)
    finally:
        os.umask(before)
    opened, written = (os.stat(tmp_path / name).st_mode for name in ("opened", "written"))
    assert written == opened
    assert stat.S_IMODE(written) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755])
def test_a_replaced_file_keeps_its_permissions(path, mode):
    path.chmod(mode)
    write_atomically(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_temporary_file_for_a_private_file_is_private_from_the_start(path, monkeypatch):
    path.chmod(0o600)
    modes = []

    def look(place, name, args):
        modes.extend(
            stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir() if one != path
        )

    write(monkeypatch, path, NEW, after=look, piece=PIECE)
    assert set(modes) == {0o600}


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to none"])
def test_a_symbolic_link_remains_and_its_target_is_written(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    if there:
        target.write_bytes(OLD)
    link.symlink_to(Path("elsewhere") / "target")
    write_atomically(link, NEW)
    assert link.is_symlink()
    assert target.read_bytes() == NEW
    assert os.listdir(target.parent) == ["target"]


# Invalid arguments


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_not_a_regular_file_is_not_replaced(tmp_path, make):
    make(tmp_path / "file")
    kind = os.stat(tmp_path / "file").st_mode
    with pytest.raises(OSError, match="not a regular file"):
        write_atomically(tmp_path / "file", NEW)
    assert os.stat(tmp_path / "file").st_mode == kind
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", NEW)


@pytest.mark.parametrize("data", ["text", None, 3, [1]])
def test_data_that_are_not_bytes_are_rejected_and_the_old_file_remains(path, data):
    with pytest.raises(TypeError):
        write_atomically(path, data)
    assert path.read_bytes() == OLD


# Errors in every system call


def test_the_module_makes_system_calls_through_os_only():
    """This ensures that the faults below reach every call, including those added later."""
    tree = ast.parse(inspect.getsource(files))
    nodes = list(ast.walk(tree))
    imported = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    taken_from = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"errno", "os", "secrets", "stat"}
    assert taken_from == {"__future__", "collections.abc", "contextlib"}
    assert not {"open", "io", "__import__"} & {n.id for n in nodes if isinstance(n, ast.Name)}


def test_the_data_are_flushed_before_the_rename_and_the_folder_before_the_return(path, monkeypatch):
    flushed = []

    def note(place, name, args):
        if name == "fsync":
            flushed.append(os.fstat(args[0]).st_ino)

    log = write(monkeypatch, path, NEW, piece=PIECE, after=note)
    assert flushed == [path.stat().st_ino, path.parent.stat().st_ino]
    last_write = max(place for place, name in enumerate(log) if name == "write")
    first, second = (place for place, name in enumerate(log) if name == "fsync")
    assert last_write < first < log.index("replace") < second
    assert log[log.index("replace") + 1 :] == [
        "fsync",
        "close",
    ]  # everything else can still be undone
    assert log.count("write") == -(-len(NEW) // PIECE)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_old_file_survives_an_error_in_any_system_call(path, monkeypatch, moment, code):
    log = log_of(monkeypatch, path)
    for place, name in enumerate(log):
        with pytest.raises(OSError, match=f" at {name}") as error:
            write(monkeypatch, path, NEW, piece=PIECE, **{moment: failing({place}, code)})
        assert error.value.errno == code
        # after the rename the new file is in place, complete
        replaced = place > log.index("replace") - (moment == "after")
        assert path.read_bytes() == (NEW if replaced else OLD), name
        assert os.listdir(path.parent) == ["file"], name
        path.write_bytes(OLD)


def test_an_error_leaves_no_file_if_there_was_none(path, monkeypatch):
    path.unlink()
    log = write(monkeypatch, path, NEW, piece=PIECE)
    for place in range(log.index("replace") + 1):
        path.unlink(missing_ok=True)
        with pytest.raises(OSError, match="No space"):
            write(monkeypatch, path, NEW, piece=PIECE, before=failing({place}, errno.ENOSPC))
        assert os.listdir(path.parent) == []


def test_a_second_error_during_cleanup_hides_no_error_and_spares_the_file(path, monkeypatch):
    log = log_of(monkeypatch, path)
    tried = 0
    for place, name in enumerate(log):
        for later in range(place + 1, len(log) + 3):
            fault = failing({place, later}, errno.EIO)
            with pytest.raises(OSError, match=" at ") as error:
                write(monkeypatch, path, NEW, piece=PIECE, before=fault)
            errors = [str(error.value), str(error.value.__context__)]
            assert any(one.endswith(f" at {name}") for one in errors)
            assert path.read_bytes() == (NEW if place > log.index("replace") else OLD)
            for left in path.parent.iterdir():
                assert left == path or left.name.startswith(".partial-")
                left.unlink()
            path.write_bytes(OLD)
            tried += 1
    assert tried > 3 * len(log)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interruption_leaves_the_old_file_and_no_temporary_one(path, monkeypatch, stop):
    def interrupt(place, name, args):
        if name == "fsync":
            raise stop

    with pytest.raises(stop):
        write(monkeypatch, path, NEW, before=interrupt)
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == ["file"]


def test_a_file_system_that_cannot_flush_folders_is_supported(path, monkeypatch):
    log = log_of(monkeypatch, path)
    last = max(place for place, name in enumerate(log) if name == "fsync")
    write(monkeypatch, path, NEW, piece=PIECE, before=failing({last}, errno.EINVAL))
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("piece", [1, 7, len(NEW) - 1, len(NEW)])
def test_a_short_write_is_continued(path, monkeypatch, piece):
    write(monkeypatch, path, NEW, piece=piece)
    assert path.read_bytes() == NEW


@hypothesis.settings(deadline=None, max_examples=100, database=None)
@hypothesis.given(
    old=st.none() | st.binary(max_size=300),
    new=st.binary(max_size=300),
    piece=st.integers(1, 300),
    places=st.sets(st.integers(0, 40), max_size=3),
    code=st.sampled_from(sorted(set(errno.errorcode) - {errno.EINVAL})),
)
def test_any_data_and_errors_leave_either_the_old_file_or_the_new_one(
    tmp_path_factory, old, new, piece, places, code
):
    path = tmp_path_factory.mktemp("folder") / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.suppress(OSError):
        log = write(monkeypatch, path, new, piece=piece, before=failing(places, code))
        old = new
        assert not places & set(range(len(log)))
    assert (path.read_bytes() if path.exists() else None) in (old, new)


def test_concurrent_writers_leave_one_complete_file(path):
    contents = [bytes([letter]) * 20_000 for letter in b"abc"]
    write_atomically(path, contents[0])
    seen = set()

    def write_often(data):
        for _ in range(15):
            write_atomically(path, data)
            seen.add(path.read_bytes())

    threads = [threading.Thread(target=write_often, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert len(seen) == len(contents)
    assert os.listdir(path.parent) == ["file"]


# Crashes: the process is killed


PREAMBLE = f"""
import importlib.util, json, os, resource, signal, sys, types
from pathlib import Path

spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
OLD, NEW, PIECE = {OLD!r}, {NEW!r}, {PIECE}
path = Path(sys.argv[1]) / "file"

{inspect.getsource(System)}
"""

CRASH = """
def restore(there):
    for one in path.parent.iterdir():
        one.unlink()
    if there:
        path.write_bytes(OLD)

def killed(place, moment, power):
    "Kill a writer at a call; in a power failure, files that were not flushed become empty."
    flushed = {one.stat().st_ino for one in path.parent.iterdir()}
    def note(at, name, args):
        if name == "fsync":
            flushed.add(os.fstat(args[0]).st_ino)
        if (at, moment) == (place, "after"):
            kill()
    def check(at, name, args):
        if (at, moment) == (place, "before"):
            kill()
    def kill():
        for one in path.parent.iterdir():
            if power and one.stat().st_ino not in flushed:
                os.truncate(one, 0)
        os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        files.os = System(check, note, piece=PIECE)
        files.write_atomically(path, NEW)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    contents = path.read_bytes() if path.exists() else None
    kinds = {OLD: "old", NEW: "new", None: "none"}
    files.write_atomically(path, NEW)  # leftovers of a crash do not interfere
    assert path.read_bytes() == NEW
    return kinds.get(contents, "a mixture")

results = []
for there in (True, False):
    restore(there)
    files.os = whole = System(piece=PIECE)
    files.write_atomically(path, NEW)
    files.os = os
    for place, name in enumerate(whole.log):
        for moment in ("before", "after"):
            for power in (False, True):
                restore(there)
                found = killed(place, moment, power)
                renamed = place > whole.log.index("replace") - (moment == "after")
                results.append([there, name, moment, power, renamed, found])
print(json.dumps(results))
"""

LIMIT = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path.write_bytes(OLD)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) - 100, resource.RLIM_INFINITY))
try:
    files.write_atomically(path, NEW)
except OSError as error:
    print(json.dumps([error.errno, path.read_bytes() == OLD, os.listdir(path.parent)]))
"""


def run(script, folder):
    command = [sys.executable, "-c", PREAMBLE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_crash_at_any_system_call_leaves_the_old_or_the_new_file_complete(tmp_path):
    results = run(CRASH, tmp_path)
    operations = {name for _, name, *_ in results}
    assert {"open", "write", "fsync", "close", "replace"} <= operations
    assert len(results) > 2 * 4 * len(operations)
    for there, name, moment, power, renamed, found in results:
        expected = "new" if renamed else "old" if there else "none"
        assert found == expected, (there, name, moment, power)


def test_a_file_size_limit_that_truncates_a_write_leaves_the_old_file(tmp_path):
    assert run(LIMIT, tmp_path) == [errno.EFBIG, True, ["file"]]
