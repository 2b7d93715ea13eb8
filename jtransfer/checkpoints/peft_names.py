"""The names of PEFT's tensors, beside the weight of each layer that a method of it changes."""

from jtransfer.checkpoints.names import SAME, TRANSPOSED, Names, Row
from jtransfer.checkpoints.peft_formats import EMBEDDING, Format

COPIES = (
    (r".*\.original_module\..*", "the head of the base, saved for want of care with bias='all'"),
    (r".*\.modules_to_save\..*", "a second copy, likewise"),
)
WEIGHTS = ("{}/kernel", "{}/embedding")


def table(names: Names, format: Format) -> Names:
    """The table of the base with what stands beside every weight, and by the names of modules in memory."""

    def row(base):
        kind = dict(base.kind)
        beside = _beside(format, *base.kind.get(".weight", ("", None)))
        if len(base.paths) == 1 and beside:
            kind |= beside | {f".base_layer{end}": place for end, place in base.kind.items()}
        if format.whole:
            kind |= {f".ln_tuning_layers{end}": place for end, place in base.kind.items()}
        first, *others = (*base.also, base.theirs)
        return Row(first, base.ours, kind, tuple(others))

    shared = [Row(theirs, ours, {"": ("{}", layout)}) for theirs, (ours, layout) in format.shared.items()]
    return Names((*map(row, names.rows), *shared), names.prefix, COPIES)


def is_adaptable(names: Names, format: Format, path: str) -> bool:
    """Whether a leaf is a weight of a layer that the method can change."""
    found = names.source(path)
    return bool(found) and len(found[1]) == 1 and bool(_beside(format, f"{{}}/{path.rpartition('/')[2]}", found[2]))


def is_dense(names: Names, path: str) -> bool:
    """Whether the kernel at a path is of a linear layer in PyTorch too, and not of a convolution."""
    return path.endswith("/kernel") and names.source(path)[2] in (TRANSPOSED, SAME)


def _beside(format, ours, layout):
    """What stands beside a weight: nothing where the method cannot change it."""
    if ours not in WEIGHTS or layout is None:
        return {}
    return format.ends.get(layout if ours == WEIGHTS[0] else EMBEDDING, {})
