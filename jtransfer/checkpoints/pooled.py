"""What makes a directory of Hugging Face one of sentence-transformers, and a head that stands beside such an encoder.

No class of Hugging Face predicts from the mean of the tokens. An encoder that pools so goes out as the directory that
`SentenceTransformer(DIR)` loads, and the head of its task as two files in it, which change no embedding:

    head.safetensors    weight [classes, width], bias [classes]: as torch.nn.Linear has them, and scikit-learn
    head.json           {"classes": [their names], "reads": "pooling"}

The head reads what the pooling gives, before any normalisation:

    encoder = SentenceTransformer(DIR)
    linear = torch.nn.Linear(width, classes)
    linear.load_state_dict(safetensors.torch.load_file("DIR/head.safetensors"))
    logits = linear(encoder[1](encoder[0](encoder.preprocess(texts)))["sentence_embedding"])  # `tokenize` before 6
"""

from pathlib import Path

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.checkpoints import tensors
from jtransfer.checkpoints.names import DENSE, Row
from jtransfer.errors import InputError
from jtransfer.models import SOURCE_HEAD, Architecture, Head
from jtransfer.tree import Tree

WEIGHTS, ABOUT = "head.safetensors", "head.json"
ROW = Row("head", SOURCE_HEAD.rstrip("/"), DENSE)
"""Where the tensors of the head go, by the names that `read` gives them."""

POOLED = ("cls", "mean")
"""Ways of pooling that a sentence encoder has."""


def is_encoder(config: Architecture) -> bool:
    """Whether a model gives the embedding of a sentence."""
    return config.sentence_pooling == config.pool in POOLED


def stands_beside(config: Architecture, head: Head | None) -> bool:
    """Whether a head on a model goes into the two files: one layer on what a sentence encoder pools."""
    return head is not None and bool(config.sentence_pooling) and head == Head(head.classes)


def write_head(directory: Path, params: Tree, classes: tuple[str, ...]) -> None:
    """Write the two files of the head under `source_head/` of a tree."""
    kernel, bias = (np.asarray(params[SOURCE_HEAD + leaf], np.float32) for leaf in ("kernel", "bias"))
    tensors.write_safetensors(directory / WEIGHTS, {"weight": kernel.T, "bias": bias})
    (directory / ABOUT).write_text(files.as_json({"classes": list(classes), "reads": "pooling"}))


def read(where: epath.Path) -> tuple[tuple[str, ...], dict[str, tensors.Tensor]] | None:
    """The names of the classes and the tensors `head.weight` and `head.bias` of the head in a directory; None if none.

    Raises:
        InputError: one of the files is missing or damaged, or they contradict each other.
    """
    if not (where / WEIGHTS).exists() and not (where / ABOUT).exists():
        return None
    for name in (WEIGHTS, ABOUT):
        if not (where / name).exists():
            raise InputError(f"{where / name} is missing, which describes the head together with the other file")
    found, classes = tensors.read_safetensors(where / WEIGHTS), files.read_json(where / ABOUT).get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{where / ABOUT}: expected the list 'classes' of names")
    shapes = {name: tensor.shape for name, tensor in found.items()}
    if sorted(shapes) != ["bias", "weight"] or len(shapes["weight"]) != 2:
        raise InputError(f"{where / WEIGHTS}: expected weight [classes, width] and bias [classes], found {shapes}")
    if {len(classes), *shapes["bias"], shapes["weight"][0]} != {len(classes)}:
        raise InputError(f"{where / WEIGHTS} has {shapes}, and {ABOUT} has {len(classes)} classes")
    return tuple(classes), {f"head.{name}": tensor for name, tensor in found.items()}


def write_modules(directory: Path, config: Architecture, limit: int | None) -> None:
    """Write what sentence-transformers reads beside the model; what it says of texts stays where it is there already.

    Args:
        directory: With `config.json`, weights and the files of the tokenizer.
        config: Of the encoder.
        limit: The most tokens that are kept of a text; None where nothing says it.
    """
    modules = ["", "1_Pooling", *(["2_Normalize"] if config.normalize else [])]
    kinds = ("Transformer", "Pooling", "Normalize")
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(modules, kinds, strict=False))
    ]
    own = {"cls": "cls_token", "mean": "mean_tokens"}[config.sentence_pooling]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    flags = {f"pooling_mode_{mode}": mode == own for mode in modes}
    contents = {
        "modules.json": described,
        "1_Pooling/config.json": {"word_embedding_dimension": config.width} | flags,
        **({"2_Normalize/config.json": {}} if config.normalize else {}),
    }
    if limit and not any(directory.glob("sentence_*_config.json")):
        contents["sentence_bert_config.json"] = {"max_seq_length": limit, "do_lower_case": False}
    for name, values in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(files.as_json(values))
