"""The layers that a pattern of a method may name."""

import re
from collections.abc import Collection


def there_are(paths: Collection[str]) -> str:
    """The layers with a kernel, once for all blocks, for the end of an error: `there are encoder/block_0/mlp/up, ...`.

    Args:
        paths: Of the leaves.
    """
    kernels = (path.removesuffix("_q") for path in paths if path.endswith(("/kernel", "/kernel_q")))
    layers = {re.sub(r"\d+", "0", path.removesuffix("/kernel")) for path in kernels}
    return f"there are {', '.join(sorted(layers))}"
