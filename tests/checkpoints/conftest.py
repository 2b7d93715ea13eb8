"""What the tests of checkpoints in other layouts share."""

import numpy as np
import pytest

from jtransfer import checkpoints
from jtransfer.checkpoints import hub, layouts


@pytest.fixture(scope="session")
def random_like():
    """`make(shapes)`: float32 arrays away from every initial value, so that nothing is hidden by zeros and ones."""

    def make(shapes):
        rng = np.random.default_rng(0)
        return {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}

    return make


@pytest.fixture(scope="session")
def described():
    """`read(path)`: a checkpoint with its config read and no tensor yet."""
    return lambda path: layouts.read(hub.find(str(path)), "", None, None)


@pytest.fixture(scope="session")
def assert_written_back(described):
    """`check(path)`: from the loaded tree, the table of a layout makes the tensors of the file, to the bit."""

    def check(path, but=()):
        source = described(path)
        theirs = {name: x.read() for name, x in source.tensors.items() if not source.names.ignores(name)}
        ours = source.names.write(checkpoints.load(str(path), sharding="host").params)
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - set(but):
            assert ours[name].shape == theirs[name].shape and ours[name].tobytes() == theirs[name].tobytes(), name

    return check
