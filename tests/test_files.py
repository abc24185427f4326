import errno
import hashlib
import os
import shutil

import pytest

from gr_sweep import files
from gr_sweep.errors import DataError
from gr_sweep.files import (
    content_digest,
    full_disk,
    is_full,
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


def test_a_full_disk_is_known_by_number_or_by_the_words_of_libraries(tmp_path):
    assert all(is_full(OSError(n, "x")) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert is_full(Exception("No space left on device (os error 28)"))
    assert is_full(shutil.Error([("from", "to", "[Errno 28] No space left on device: 'to'")]))
    error = DataError("x")
    error.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_full(error)
    assert not is_full(OSError(errno.EACCES, "x")) and not is_full(Exception("(os error 13)"))
    assert f"{tmp_path} cannot be written: No space" in str(full_disk(tmp_path, error))


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
