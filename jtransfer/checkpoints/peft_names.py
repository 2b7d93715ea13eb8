"""PEFT's names of A and B, beside the kernel of each layer that LoRA adapts."""

from jtransfer.checkpoints.names import CONVOLUTION, ONE_BY_ONE, SAME, TRANSPOSED, Names, Row

A, B = "{}/lora/a", "{}/lora/b"
DENSE_SIDES = {".lora_A.weight": (A, TRANSPOSED), ".lora_B.weight": (B, TRANSPOSED)}
SIDES = {
    TRANSPOSED: DENSE_SIDES,
    SAME: DENSE_SIDES,
    CONVOLUTION: {".lora_A.weight": (A, CONVOLUTION), ".lora_B.weight": (B, ONE_BY_ONE)},
    ONE_BY_ONE: {".lora_A.weight": (A, ONE_BY_ONE), ".lora_B.weight": (B, ONE_BY_ONE)},
}
"""The two sides beside a kernel, by how the kernel lies."""
COPIES = (
    (r".*\.original_module\..*", "the head of the base, saved for want of care with bias='all'"),
    (r".*\.modules_to_save\..*", "a second copy, likewise"),
)


def table(names: Names) -> Names:
    """The table of the base with A and B beside every kernel, and by the names of modules in memory."""

    def row(base):
        kind = dict(base.kind)
        ours, layout = base.kind.get(".weight", ("", None))
        if len(base.paths) == 1 and ours == "{}/kernel" and layout in SIDES:
            kind |= SIDES[layout] | {f".base_layer{end}": place for end, place in base.kind.items()}
        first, *others = (*base.also, base.theirs)
        return Row(first, base.ours, kind, tuple(others))

    return Names(tuple(map(row, names.rows)), names.prefix, COPIES)


def is_dense(names: Names, path: str) -> bool:
    """Whether the kernel at a path is of a linear layer in PyTorch too, and not of a convolution."""
    return names.source(path)[2] in (TRANSPOSED, SAME)
