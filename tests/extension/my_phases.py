"""The head first, then all, each layer slower than the one above it (after ULMFiT, Howard and Ruder 2018)."""

import re

from jtransfer.methods import Method, learn


def head_first(slower: float = 2.6) -> Method:
    """A linear probe, then finetuning in which each block learns `slower` times slower than the next one.

    That is "discriminative fine-tuning" with its factor of 2.6 (arXiv:1801.06146, section 3.2); what precedes the
    blocks is slower again, what follows them is as fast as the head.
    """

    def by_depth(paths):
        found = {path: re.search(r"block_(\d+)/", path) for path in paths}
        depth = 1 + max((int(block[1]) for block in found.values() if block), default=-1)
        early = {path: depth + 1 for path in paths if re.match("embeddings/|stem/", path)}
        below = {path: depth - int(block[1]) for path, block in found.items() if block}
        return {path: slower ** -(early | below).get(path, 0) for path in paths}

    return Method("head", learn(("head/.*", 1.0))) >> Method("by_depth", by_depth)
