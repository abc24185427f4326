"""Which code makes a job's numbers: digests of the package's own source files.

Standard library alone.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

_NO_PART_IN_NUMBERS = ("bench", "cli", "export", "launch", "report", "tracking")
"""Parts that a job's numbers do not pass through: the config that `cli` makes has a fingerprint of
its own."""


@functools.cache
def source_digests() -> Mapping[str, str]:
    """12 hexadecimal digits of each source file that can change a job's numbers, by its path in the
    package; of the files as they are when this is first called."""
    package = Path(__file__).parent
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(package.rglob("*.py"))
        for name in [path.relative_to(package)]
        if name.parts[0] not in _NO_PART_IN_NUMBERS
    }


def code_fingerprint() -> str:
    """64 hexadecimal digits over all of them."""
    lines = (f"{name} {digest}\n" for name, digest in source_digests().items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
