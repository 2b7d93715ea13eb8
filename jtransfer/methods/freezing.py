"""Methods that add nothing: they differ only in which leaves learn, at which rate."""

import re

from jtransfer.errors import InputError
from jtransfer.methods.method import HEAD, Method, learn


def probe() -> Method:
    """Only the head learns: a linear probe on frozen features."""
    return Method("probe", learn(HEAD))


def finetune(backbone: float = 1.0) -> Method:
    """Everything learns; the backbone at `backbone` times the head's rate."""
    if not backbone > 0:
        raise InputError(f"finetune: backbone={backbone} must be above 0; for a frozen backbone use 'probe'")
    return Method("finetune", learn(HEAD, (".*", backbone)))


def scratch() -> Method:
    """Everything learns, from a random start: the baseline that says what pretraining is worth."""
    return Method("scratch", learn((".*", 1.0)), pretrained=False)


def top_blocks(k: int) -> Method:
    """The last `k` blocks, the norm after them and the head learn.

    Raises:
        InputError: when the method meets a model of fewer than `k` blocks.
    """
    if k < 1:
        raise InputError(f"top_blocks: k={k} must be at least 1; for the head alone use 'probe'")

    def learns(paths):
        depth = 1 + max((int(i) for path in paths for i in re.findall(r"(?:^|/)block_(\d+)/", path)), default=-1)
        if k > depth:
            raise InputError(f"top_blocks: k={k} is more than the {depth} blocks of the model")
        top = "|".join(str(i) for i in range(depth - k, depth))
        return learn(HEAD, (rf"(.*/)?(block_({top})/.*|encoder/norm/.*)", 1.0))(paths)

    return Method("top_blocks", learns)


def bitfit() -> Method:
    """Every bias and the head learn (Ben Zaken et al. 2022, arXiv:2106.10199)."""
    return Method("bitfit", learn(HEAD, (r"(.*/)?bias", 1.0)))
