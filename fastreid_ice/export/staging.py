"""Several files that appear together, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastreid_ice.files import replacing


@contextmanager
def staged(output: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder, whose files move under ``output`` when the block ends without an error.

    Each takes its place at once, over an older one; until then ``output`` is not touched, nor made. The folder lies
    beside ``output``, on the same file system.

    Raises:
        OSError: ``output`` is a file, or cannot be written.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output {output} is a file; name a folder")
    parent = output.absolute().parent if not output.exists() else output.absolute()
    while not parent.exists():
        parent = parent.parent
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export_", dir=parent))
    except OSError as error:
        raise type(error)(f"--output {output} cannot be written ({parent}: {error.strerror})") from error
    try:
        yield folder
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with replacing(output / file.relative_to(folder)) as target:
                os.replace(file, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
