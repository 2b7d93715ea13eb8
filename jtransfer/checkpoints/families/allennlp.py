"""ELMo in AllenNLP's layout: weights as TensorFlow's cells have them in HDF5, and the options of their training.

    weights.hdf5    char_embed  CNN/{W_cnn_0, b_cnn_0, ...}  CNN_high_0/{W_transform, b_transform, W_carry, b_carry}
                    CNN_proj/{W_proj, b_proj}  RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/{W_0, B, W_P_0}
    options.json    {"char_cnn": {"filters": [[1, 32], ...], ...}, "lstm": {"dim": 4096, "projection_dim": 512, ...}}

`RNN_0` reads forward and `RNN_1` backward. `W_0` has the rows of the input above those of the state, its gates in the
order of ours. TensorFlow adds 1 to the bias of the forget gate when it computes; our bias has it in it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jtransfer import kinds
from jtransfer.checkpoints.families.family import Description
from jtransfer.checkpoints.families.values import typed
from jtransfer.checkpoints.names import LEAF, LayerKind, Layout, Names, Row
from jtransfer.checkpoints.tensors import MOST, Tensor
from jtransfer.errors import InputError, first_line
from jtransfer.models import ElmoConfig
from jtransfer.models.elmo import ACTIVATIONS, DIRECTIONS, LETTERS

SUFFIX = ".hdf5"
OPTIONS = "options.json"
"""The end of the name of the file with the options, as of `elmo_2x4096_512_2048cnn_2xhighway_options.json`."""

SIZE = kinds.whole(1, 2**20)
FILTERS = kinds.several(kinds.several(SIZE, 2, 2), 1, 64)
CLIP = kinds.number(least=0)

CELL = "RNN_{}/RNN/MultiRNNCell/Cell{{}}/LSTMCell"


def options_file(weights: epath.Path) -> epath.Path:
    """The file with the options beside weights: `options.json`, or the one whose name ends so.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted(path for path in weights.parent.iterdir() if path.name.endswith(OPTIONS))
    own = [path for path in found if path.name.removesuffix(OPTIONS) == weights.name.removesuffix(f"weights{SUFFIX}")]
    if len(own or found) != 1:
        there = f"{len(found)} files end with '{OPTIONS}'" if found else f"no file ends with '{OPTIONS}'"
        raise InputError(f"{weights}: {there} beside it; expected one, which says the sizes of the model")
    return (own or found)[0]


def read_hdf5(path: epath.Path) -> dict[str, Tensor]:
    """The tensors in an HDF5 file by their paths in it. Links out of the file are not followed.

    Raises:
        InputError: h5py is not installed, or a file that is damaged, of another format, or has what is no plain array.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path} is an HDF5 file, which h5py reads: pip install 'jtransfer[elmo]'") from None

    found: dict[str, Tensor] = {}

    def add(name, there):
        if not isinstance(there, h5py.Dataset):
            return
        if there.external or there.is_virtual or there.dtype.kind not in "fiub":
            raise InputError(f"{path}: '{name}' is no array of numbers in the file itself")
        if len(found) >= MOST:
            raise InputError(f"{path} has more than {MOST:,} tensors; at most {MOST:,} load")
        found[name] = Tensor(there.shape, there.dtype, lambda: there[...])

    try:
        h5py.File(path.open("rb"), "r").visititems(add)
    except InputError:
        raise
    except Exception as error:  # whatever the library raises of damage
        raise InputError(f"{path} is truncated or no HDF5 file ({first_line(error)})") from None
    return found


def describe(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Description:
    """What is in an HDF5 file of ELMo.

    Args:
        tensors: By their paths in the file.
        values: Of the options.

    Raises:
        InputError: options that are missing, or of a model that ours cannot be.
    """
    config = _config(values)
    filters = values["char_cnn"]["filters"]
    if [width for width, _ in filters] != [*range(1, len(filters) + 1)]:
        raise InputError(f"config.json: char_cnn.filters are {filters}; expected widths 1, 2, 3, ... in this order")
    return Description(config, None, Names(_rows(config)), tensors, {})


def _config(values):
    characters, lstm = (_section(values, name) for name in ("char_cnn", "lstm"))
    embedding = _section(characters, "embedding", "char_cnn.")
    if not typed(lstm, "use_skip_connections", False) and lstm.get("n_layers") != 1:
        raise InputError("config.json: lstm.use_skip_connections is false; expected true, as AllenNLP does")
    activation = typed(characters, "activation", "relu")
    if activation not in ACTIVATIONS:
        raise InputError(f"config.json: char_cnn.activation is '{activation}'; expected {' or '.join(ACTIVATIONS)}")
    if (letters := _number(characters, "max_characters_per_token", "char_cnn.")) != LETTERS:
        raise InputError(f"config.json: char_cnn.max_characters_per_token is {letters}; expected {LETTERS}")
    return ElmoConfig(
        character_width=_number(embedding, "dim", "char_cnn.embedding."),
        filters=tuple(number for _, number in _number(characters, "filters", "char_cnn.", FILTERS)),
        highways=_number(characters, "n_highway", "char_cnn.", kinds.whole(0, 100)),
        activation=activation,
        width=_number(lstm, "projection_dim", "lstm."),
        hidden=_number(lstm, "dim", "lstm."),
        vocabulary=0,
        depth=_number(lstm, "n_layers", "lstm."),
        cell_clip=_number(lstm, "cell_clip", "lstm.", CLIP),
        projection_clip=_number(lstm, "proj_clip", "lstm.", CLIP),
    )


def _section(values, name, before=""):
    if not isinstance(found := values.get(name), Mapping):
        raise InputError(f"config.json: expected an object under '{before}{name}', as the options of ELMo have")
    return found


def _number(values, name, before, kind=SIZE):
    if name not in values:
        raise InputError(f"config.json: '{before}{name}' is missing; expected {kind.expected}")
    kinds.check(values[name], kind, f"config.json: {before}{name}")
    return values[name]


def _rows(config: ElmoConfig) -> tuple[Row, ...]:
    def layer(theirs: str, kernel: str, bias: str, ours: str) -> tuple[Row, ...]:
        return Row(f"{theirs}{kernel}", f"{ours}/kernel", LEAF), Row(f"{theirs}{bias}", f"{ours}/bias", LEAF)

    rows = [
        Row("char_embed", "embeddings/character/embedding", {"": ("{}", WITHOUT_PADDING)}),
        Row("CNN/W_cnn_{}", "embeddings/conv_{}/kernel", {"": ("{}", IN_ONE_DIMENSION)}),
        Row("CNN/b_cnn_{}", "embeddings/conv_{}/bias", LEAF),
        *layer("CNN_high_{}/", "W_transform", "b_transform", "embeddings/highway_{}/transform"),
        *layer("CNN_high_{}/", "W_carry", "b_carry", "embeddings/highway_{}/carry"),
        *layer("CNN_proj/", "W_proj", "b_proj", "embeddings/projection"),
    ]
    for number, direction in enumerate(DIRECTIONS):
        theirs, ours = CELL.format(number), f"encoder/block_{{}}/{direction}"
        rows += [
            Row(f"{theirs}/W_0", (f"{ours}/input/kernel", f"{ours}/cell/state/kernel"), _both(config.width)),
            Row(f"{theirs}/B", f"{ours}/cell/state/bias", {"": ("{}", REMEMBERING)}),
            Row(f"{theirs}/W_P_0", f"{ours}/cell/projection/kernel", LEAF),
        ]
    return tuple(rows)


WITHOUT_PADDING = Layout(lambda x: (np.pad(x, ((1, 0), (0, 0))),), lambda x: x[1:])
"""The table of characters, which lacks the row of padding: it is 0."""

IN_ONE_DIMENSION = Layout(lambda x: (x.reshape(x.shape[1:]),), lambda x: x[None])
"""TensorFlow's `[1, width, in, out]` of a convolution of images of height 1."""


def _both(width: int) -> LayerKind:
    """The kernel of the input above that of the state: `[input width + state width, gates]`."""
    return {"": ("{}", Layout(lambda x: (x[:width], x[width:]), lambda *both: np.concatenate(both)))}


def _remember(x, by):
    quarter = len(x) // 4
    return np.concatenate([x[: 2 * quarter], x[2 * quarter : 3 * quarter] + by, x[3 * quarter :]]).astype(x.dtype)


REMEMBERING = Layout(lambda x: (_remember(x, 1),), lambda x: _remember(x, -1))
"""The bias of the gates, with the 1 that TensorFlow adds to the third when it computes."""
