"""Pictures for the user's reader."""

import io
import tarfile

import numpy as np
import pytest


@pytest.fixture(scope="session")
def write_shards(png):
    """`write_shards(directory)`: 30 pictures in three tar files, whose brightness tells their class."""

    def write(directory):
        directory.mkdir()
        rng = np.random.default_rng(0)
        for shard in range(3):
            with tarfile.open(directory / f"{shard}.tar", "w") as tar:
                for i in range(10):
                    picture = rng.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(127 * (i % 2))
                    for suffix, content in (("png", png(picture).getvalue()), ("cls", str(i % 2).encode())):
                        member = tarfile.TarInfo(f"{i}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))

    return write
