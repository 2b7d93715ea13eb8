"""Pictures for the user's readers."""

import io
import tarfile

import numpy as np
import pytest


@pytest.fixture(scope="session")
def write_shards(png):
    """`write_shards(directory)`: 30 pictures in three tar files, whose brightness tells their class and text."""

    def write(directory):
        directory.mkdir()
        rng = np.random.default_rng(0)
        for shard in range(3):
            with tarfile.open(directory / f"{shard}.tar", "w") as tar:
                for i in range(10):
                    picture = rng.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(127 * (i % 2))
                    texts = {"cls": str(i % 2), "txt": f"{('dark', 'bright')[i % 2]} noise"}
                    for suffix, content in {"png": png(picture).getvalue(), **texts}.items():
                        content = content.encode() if isinstance(content, str) else content
                        member = tarfile.TarInfo(f"{i}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))

    return write
