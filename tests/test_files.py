import errno
import fcntl
import hashlib
import os
import shutil
import time

import pytest

from gr_sweep import files
from gr_sweep.errors import DataError
from gr_sweep.files import (
    content_digest,
    full_disk,
    is_full,
    is_locked,
    lock_file,
    whole_file,
    write_whole,
)


def test_a_file_is_replaced_when_the_block_ends_and_stays_after_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a b.txt"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    write_whole(path, "old\r\n")
    with pytest.raises(ValueError, match="half way"), whole_file(path) as file:
        file.write(b"half")
        raise ValueError("half way")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old\r\n" and list(tmp_path.iterdir()) == [path]


def test_bytes_of_a_name_that_are_not_utf8_are_escaped(tmp_path):
    write_whole(tmp_path / "x", "a\udcff")
    assert (tmp_path / "x").read_text() == r"a\udcff"


def test_a_full_disk_is_known_by_number_or_by_the_words_of_libraries(tmp_path):
    assert all(is_full(OSError(n, "x")) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert is_full(Exception("No space left on device (os error 28)"))
    assert is_full(shutil.Error([("from", "to", "[Errno 28] No space left on device: 'to'")]))
    error = DataError("x")
    error.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_full(error)
    assert not is_full(OSError(errno.EACCES, "x")) and not is_full(Exception("(os error 13)"))
    # Of a folder that is not there yet: of the disk that it would be on.
    message = str(full_disk(tmp_path / "a" / "b", OSError(errno.EFBIG, "File too large")))
    assert f"{tmp_path / 'a' / 'b'} cannot be written: File too large (" in message
    assert "GiB free on the disk" in message and "ulimit -f" in message


def test_one_process_has_a_lock_and_another_waits_for_it(tmp_path):
    path = tmp_path / "lock"
    assert is_locked(path) is None and not path.exists()
    with lock_file(path) as has_lock:
        assert has_lock and is_locked(path)
        for timeout_s in (0.0, 0.2):
            start = time.monotonic()
            with lock_file(path, timeout_s=timeout_s) as has_second:
                assert not has_second
            assert timeout_s <= time.monotonic() - start < 5
    assert is_locked(path) is False
    # Two processes that look at once do not take each other for the holder.
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert is_locked(path) is False


def test_a_digest_is_of_all_of_a_file_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 3000)
    path = tmp_path / "f"
    content = bytearray(os.urandom(10_000))
    path.write_bytes(content)
    pieces = [bytes(content[i : i + 3000]) for i in range(0, len(content), 3000)]
    sums = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert content_digest(path) == hashlib.sha256(sums).hexdigest()
    path.write_bytes(b"")
    assert content_digest(path) == hashlib.sha256(hashlib.sha256().digest()).hexdigest()
