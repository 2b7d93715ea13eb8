"""Writing whole files so that a reader finds the old content or the new, on a disk or in an object store."""

import os

from etils import epath


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Write all of a file at once.

    An object store replaces an object atomically; on a disk a temporary file beside it takes its name. No directory
    is renamed, and nothing is appended.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(content)
    else:
        draft = path.parent / f".{path.name}.{os.getpid()}.draft"
        draft.write_bytes(content)
        draft.replace(path)
