"""Files: complete or absent, one line at a time, safe names."""

import multiprocessing
import os
import stat

import pytest

from dftune.files import append_jsonl, check_name, fingerprint, read_jsonl, write_json, write_jsonl, write_text


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


def test_a_line_cut_by_a_kill_is_dropped_before_the_next_is_added(tmp_path):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"a": 1}])
    with path.open("ab") as file:
        file.write(b'{"a": 2, "b": "half')
    assert read_jsonl(path, partial_last_line=True) == [{"a": 1}]
    append_jsonl(path, [{"a": 3}])
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
