"""Reads and writes the log of a run that wandb keeps on disk, run-ID.wandb: its records, as bytes.

The file is a log of records in the LevelDB format (blocks of 32 KiB; in them checksum, length, type
and payload) behind a header of 7 bytes. The checksum is zlib's, of type and payload. What a payload
means, a protobuf message of wandb's, is not known here.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_BLOCK_BYTES = 32768
_HEADER_BYTES = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_HEAD = b":W&B" + struct.pack("<HB", 0xBEE1, 0)


def read_payloads(path: Path) -> Iterator[bytes]:
    """The records in the order in which they were written, up to where a kill tore the file."""
    content = path.read_bytes()
    if not content.startswith(b":W&B"):
        return  # killed before its first block was written
    position, parts = _HEADER_BYTES, list[bytes]()
    while position < len(content):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _HEADER_BYTES:
            position += left  # a block ends in less than a header
            continue
        if position + _HEADER_BYTES > len(content):
            return
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += _HEADER_BYTES
        payload = content[position : position + length]
        position += length
        # After a power cut there may be zeros where the file was longer than what was written.
        if len(payload) < length or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        parts.append(payload)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def write_payloads(path: Path, payloads: Iterable[bytes]) -> None:
    """Writes a file that holds these records."""
    content = bytearray(_HEAD)
    for payload in payloads:
        rest, is_first = payload, True
        while is_first or rest:
            left = _BLOCK_BYTES - len(content) % _BLOCK_BYTES
            if left < _HEADER_BYTES:
                content += bytes(left)
                continue
            part, rest = rest[: left - _HEADER_BYTES], rest[left - _HEADER_BYTES :]
            first, last = (_FIRST, _FULL) if is_first else (_MIDDLE, _LAST)
            kind = first if rest else last
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            content += struct.pack("<IHB", checksum, len(part), kind) + part
            is_first = False
    path.write_bytes(content)
