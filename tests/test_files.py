"""Files: complete or absent, one line at a time, safe names."""

import multiprocessing
import os
import resource
import stat
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from dftune.files import (
    BusyError,
    append_jsonl,
    check_name,
    ends_whole,
    fingerprint,
    locked,
    read_jsonl,
    umask_mode,
    write_json,
    write_jsonl,
    write_text,
)


@contextmanager
def largest_file(num_bytes):
    """No file can grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.jsonl"
    write_text(path, "old\n")

    def rows():
        yield {"a": 1}
        raise RuntimeError("killed in the middle")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_of_a_written_file_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("room", [0, 1, 20, 29])
def test_on_a_full_disk_no_half_line_is_left_and_the_message_names_the_file(tmp_path, room):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"text": "x" * 20}])
    size = path.stat().st_size
    with largest_file(size + room), pytest.raises(OSError, match=r"could not append \d+ bytes .*a\.jsonl"):
        append_jsonl(path, [{"a": 1}, {"text": "y" * 20}])
    assert read_jsonl(path) == [{"text": "x" * 20}]
    append_jsonl(path, [{"a": 2}])
    assert read_jsonl(path) == [{"text": "x" * 20}, {"a": 2}]


def test_a_file_that_is_replaced_on_a_full_disk_stays_what_it_was_and_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with largest_file(50), pytest.raises(OSError, match=r"a\.json"):
        write_json(path, {"a": "x" * 100})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def quick_switches():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(number, work):
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the umask")
def test_asking_for_the_mode_of_new_files_from_several_threads_leaves_the_umask_alone(tmp_path, quick_switches):
    before = os.umask(0o027)
    modes = set()

    def ask():
        for _ in range(300):
            modes.add(umask_mode())

    try:
        in_threads(4, ask)
    finally:
        after = os.umask(before)
    assert (after, modes) == (0o027, {0o640})


def test_of_several_that_want_a_lock_one_has_it_and_the_others_are_told_who(tmp_path, quick_switches):
    path, total = tmp_path / "lock", tmp_path / "total"
    total.write_text("0")
    told = pytest.raises(BusyError, match=rf"the file is .* \({os.uname().nodename}, process {os.getpid()}\)")
    with locked(path, "the file"), told, locked(path, "the file"):
        pass

    def count():
        done = 0
        while done < 100:
            try:
                with locked(path, "the file"):
                    total.write_text(str(int(total.read_text()) + 1))
                    done += 1
            except BusyError:
                pass

    in_threads(4, count)
    assert total.read_text() == "400"
    assert not path.exists()


def test_a_line_cut_by_a_kill_is_dropped_before_the_next_is_added(tmp_path):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"a": 1}])
    with path.open("ab") as file:
        file.write(b'{"a": 2, "b": "half')
    assert not ends_whole(path)
    assert read_jsonl(path, partial_last_line=True) == [{"a": 1}]
    append_jsonl(path, [{"a": 3}])
    assert ends_whole(path)
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 6 + '{"a": \n' + '{"a": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 7: not valid JSON"):
        read_jsonl(path, partial_last_line=True)


def _append(path, writer):
    for index in range(50):
        append_jsonl(path, [{"writer": writer, "index": index, "text": "x" * 20000}])


def test_lines_of_several_writers_stay_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = read_jsonl(path)
    assert sorted((row["writer"], row["index"]) for row in rows) == [(w, i) for w in range(3) for i in range(50)]


def test_nan_is_not_written_as_if_it_were_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_jsonl(tmp_path / "a.jsonl", [{"loss": float("nan")}])


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".hidden", "a\0b", "x" * 101])
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        check_name(name, "name")


def test_a_fingerprint_separates_its_parts():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
