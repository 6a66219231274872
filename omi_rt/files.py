"""Files that are replaced whole, so that nobody ever reads half of one."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name, and move it into its place when it is on the disk.

    Folders that are missing are made, for the owner alone. This blocks: call it in a thread.

    Raises:
        OSError: the file that was there before, if any, is as it was.
    """
    for folder in reversed(path.parents):
        # ``parents=True`` would make all but the last readable by everybody.
        folder.mkdir(mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(".tmp", ".", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
