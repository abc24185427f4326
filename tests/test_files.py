import os

import pytest

from gr_sweep.files import whole_file, write_whole


def test_text_is_written_as_it_is(tmp_path):
    write_whole(tmp_path / "a b.txt", "ä\r\nb\n")
    assert (tmp_path / "a b.txt").read_bytes() == "ä\r\nb\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a b.txt"]


def test_until_the_block_ends_the_old_file_is_there(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ValueError, match="half way"), whole_file(path) as file:
        file.write(b"half")
        raise ValueError("half way")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
