"""Methods that add no leaves: they differ only in what learns, at which rate, and in which statistics move."""

import re
from collections.abc import Iterable
from typing import Annotated

from jtransfer.errors import InputError
from jtransfer.kinds import PATTERN, check, checked, number, whole
from jtransfer.methods.method import HEAD, Method, Phase, learn
from jtransfer.methods.modes import BATCH_NORMS, evaluating
from jtransfer.models.architecture import BEFORE_BLOCKS

BLOCK = r"(.*/)?block_\d+(?=/)"
"""What the paths of the leaves of a block begin with."""


def probe() -> Method:
    """Only the head learns: a linear probe on frozen features."""
    return Method("probe", learn(HEAD))


@checked
def finetune(backbone: Annotated[float, number(above=0)] = 1.0) -> Method:
    """Everything learns; the backbone at `backbone` times the head's rate. For a frozen backbone there is `probe`.

    Raises:
        InputError: `backbone` is no number above 0.
    """
    return Method("finetune", learn(HEAD, (".*", backbone)))


def scratch() -> Method:
    """Everything learns, from a random start: the baseline that says what pretraining is worth."""
    return Method("scratch", learn((".*", 1.0)), pretrained=False)


@checked
def rules(*patterns: str) -> Method:
    """The leaves whose paths match a pattern learn, and no other: `rules('text/.*', 'logit_.*', 'vision/.*=0.1')`.

    Behind `=` stands a rate relative to the schedule. With the tower of images left out this is locked-image tuning
    (LiT, Zhai et al. 2022, arXiv:2111.07991).

    Raises:
        InputError: no pattern, one that is no regular expression, or a rate that is no number above 0; and, of a model,
            a pattern that matches none of its leaves (`head/.*` may: a model trained on pairs has no new head).
    """
    pairs = []
    for pattern in patterns:
        path, _, rate = pattern.partition("=")
        check(path, PATTERN, "rules")
        try:
            pairs.append((path, float(rate or 1)))
        except ValueError:
            raise InputError(f"rules: '{pattern}' has no number behind '='") from None
        check(pairs[-1][1], number(above=0), f"rules: the rate of '{path}'")
    if not pairs:
        raise InputError("rules: expected at least one pattern, as in rules('text/.*')")
    return Method("rules", learn(*pairs))


@checked
def top_blocks(k: Annotated[int, whole(1)]) -> Method:
    """The last `k` blocks of each tower learn, and all that the computation has after them.

    That is every leaf in no block and in none of the modules `BEFORE_BLOCKS`: the final norm wherever it stands, the
    pooler, the projections and temperature of a dual encoder, a last convolution, the head.

    Blocks are ordered by all the numbers in their paths, so those of a ResNet go on from stage to stage:
    `top_blocks(4)` of `stage_0/block_0 ... stage_3/block_2` takes `stage_3` and the last block of `stage_2`. Each
    tower of a model of several gives its own last `k`.

    Raises:
        InputError: a `k` below 1; and, of a model, fewer than `k` blocks in one of its towers.
    """

    def learns(paths):
        towers = blocks_of(paths)
        depth = min(map(len, towers), default=0)
        if k > depth:
            raise InputError(f"top_blocks: k={k} is more than the {depth} blocks of the model")
        top = "|".join(re.escape(block) for tower in towers for block in tower[-k:])
        after = rf"(?!(.*/)?(block_\d+|{'|'.join(BEFORE_BLOCKS)})/).*"
        return learn((rf"({top})/.*|{after}", 1.0))(paths)

    return Method("top_blocks", learns)


@checked
def layerwise(decay: Annotated[float, number(above=0)] = 0.75, tied: Annotated[str, PATTERN] = "") -> Method:
    """Everything learns, each block at `decay` times the rate of the one after it.

    Of L blocks, block i (from 0) learns at `decay ** (L - i)`, what comes before the first at `decay ** (L + 1)`, and
    what comes after the last, as the final norm, at the head's rate: the convention of BEiT (Bao et al. 2022,
    arXiv:2106.08254) and timm. Blocks and towers are those of `top_blocks`; each tower has its own L. The
    discriminative rates of ULMFiT (Howard and Ruder 2018, arXiv:1801.06146) are `layerwise(0.385)`, 1 / 2.6.

    Args:
        decay: Of the rate from a block to the one before it.
        tied: A pattern of leaves that the head shares, which learn at its rate: `embeddings/.*` where a language model
            predicts words by the table that it reads them with. fastai has this table in the last group of layers.

    Raises:
        InputError: `decay` is no number above 0, or `tied` no pattern; and, of a model, one without blocks, or with no
            leaf that is `tied`.
    """

    def learns(paths):
        towers = blocks_of(paths)
        if not towers:
            raise InputError("layerwise: the model has no blocks, whose rates could differ")
        if tied and not any(re.fullmatch(tied, path) for path in paths):
            raise InputError(f"layerwise: tied: no leaf of the model matches '{tied}'")
        own = {block: decay ** (len(blocks) - i) for blocks in towers for i, block in enumerate(blocks)}

        def rate(path):
            if re.fullmatch(tied, path):
                return 1.0
            if block := re.match(BLOCK, path):
                return own[block[0]]
            if not (early := re.match(rf"((?:.*/)?)({'|'.join(BEFORE_BLOCKS)})/", path)):
                return 1.0
            return decay ** (1 + next(len(blocks) for blocks in towers if blocks[0].startswith(early[1])))

        return {path: rate(path) for path in paths}

    return Method("layerwise", learns)


@checked
def unfreeze(
    *blocks: Annotated[int, whole(1)],
    decay: Annotated[float, number(above=0)] = 1.0,
    tied: Annotated[str, PATTERN] = "",
) -> Method:
    """Gradual unfreezing: the head, then with it the last blocks of each number in turn, then everything.

    `unfreeze(1, 2)` is `probe >> top_blocks(1) >> top_blocks(2) >> finetune` (Howard and Ruder 2018, arXiv:1801.06146,
    section 3.3; theirs opens one group of layers in each epoch). With a `decay` a leaf that learns has its rate under
    `layerwise(decay)`: `unfreeze(1, 2, decay=0.385)` are gradual unfreezing and discriminative rates together.

    Args:
        *blocks: How many blocks learn in each phase after the first and before the last, rising; none for two phases.
        decay: Of the rate from a block to the one before it; 1 for equal rates.
        tied: A pattern of leaves that learn with the head from the first phase on, as those of `layerwise`.

    Raises:
        InputError: numbers that do not rise, a `decay` that is no number above 0, or `tied` no pattern; and, of a
            model, one without blocks, or with fewer.
    """
    if [*blocks] != sorted(set(blocks)):
        raise InputError(f"unfreeze: expected numbers of blocks that rise, found {', '.join(map(str, blocks))}")

    def at_its_rate(learns):
        def rates(paths):
            own = layerwise(decay, tied).learns(paths)
            learned = learns(paths) | {path: 1.0 for path in paths if re.fullmatch(tied, path)}
            return {path: rate * own[path] for path, rate in learned.items()}

        return rates if decay != 1 or tied else learns

    phases = [Phase(at_its_rate(one.learns)) for one in (probe(), *map(top_blocks, blocks), finetune())]
    return Method("unfreeze", phases[-1].learns, before=tuple(phases[:-1]))


def blocks_of(paths: Iterable[str]) -> list[list[str]]:
    """The blocks of each tower in their order, by the prefixes of their paths.

    >>> blocks_of(["stage_1/block_0/conv/kernel", "stage_0/block_1/conv/kernel", "stage_0/block_0/conv/kernel"])
    [["stage_0/block_0", "stage_0/block_1", "stage_1/block_0"]]
    """
    blocks = {found[0] for path in paths if (found := re.match(BLOCK, path))}
    towers: dict[str, list[str]] = {}
    for block in sorted(blocks, key=lambda block: [int(part) for part in re.findall(r"\d+", block)]):
        towers.setdefault(re.sub(r"\d+", "", block), []).append(block)
    return [*towers.values()]


def bitfit() -> Method:
    """Every bias and the head learn (Ben Zaken et al. 2022, arXiv:2106.10199)."""
    return Method("bitfit", learn(HEAD, (r"(.*/)?bias", 1.0)))


def norm() -> Method:
    """The scale and bias of every norm learn, and the head (Frankle et al. 2021, arXiv:2003.00152; PEFT's LN tuning).

    Batch normalisations then use the batch's statistics and move the running ones; `norm + frozen_norm` keeps them.

    Raises:
        InputError: of a model, one without norms.
    """
    own = r"(.*/)?norm(_\w+)?/(scale|bias)"

    def learns(paths):
        if not any(re.fullmatch(own, path) for path in paths):
            raise InputError("norm: the model has no norms")
        return learn(HEAD, (own, 1.0))(paths)

    return Method("norm", learns)


def frozen_norm() -> Method:
    """Every batch normalisation uses its running statistics and leaves them; nothing learns by this alone.

    `finetune + frozen_norm` trains all leaves, the scale and bias of each norm among them, as PyTorch does with the
    norms in `eval()`. Without it the norms of parts that learn use the batch's statistics, and the running ones follow.
    """
    return Method("frozen_norm", learn(), modes=(evaluating(BATCH_NORMS),))
