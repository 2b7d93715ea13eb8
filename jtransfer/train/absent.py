"""Backbones that lie elsewhere: zeros of their shapes, so that a run is compiled where they are not."""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jtransfer import files, models
from jtransfer.checkpoints import hub
from jtransfer.errors import InputError
from jtransfer.starts import vocabularies

log = logging.getLogger("jtransfer")

ELSEWHERE = re.compile(rf"({'|'.join(files.SCHEMES)})://.+|[\w.-]+/[\w.-]+")
"""Names of backbones that may be in an object store or on the hub."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8", "int8": "I8"}
"""Names of dtypes in a safetensors file."""


@contextmanager
def stand_in(config: ConfigDict) -> Iterator[ConfigDict]:
    """Within this block, a copy of a config whose backbone and towers are all here.

    In place of each one that is neither here nor can be fetched there is a checkpoint of zeros: the model that
    `config.model` describes, or the tower of it, with a tokenizer of bytes. A warning names it. A teacher and the
    backbones of what is watched are left as they are.

    Args:
        config: A config with all keys of a training run.

    Raises:
        InputError: `config.model` describes no model, or none with the tower that is not here.
    """
    config = ConfigDict(config.to_dict())
    backbone = config.backbone and not _is_here(config.backbone, config.load)
    towers = [name for name, of in config.towers.items() if of and not _is_here(of, config.load)]
    if not backbone and not towers:
        yield config
        return
    with tempfile.TemporaryDirectory() as directory:
        bits = {"bits": config.load.bits} if backbone and config.load.bits else {}
        module = models.build(**config.model.to_dict() | bits)
        if backbone:
            _warn("config.backbone", config.backbone, module)
            config.backbone = _write(Path(directory) / "backbone", module)
        for name in towers:
            if name not in module.config.towers:
                architecture = config.model.architecture
                raise InputError(
                    f"config.towers.{name} '{config.towers[name]}' is not here, and config.model.architecture "
                    f"'{architecture}' has no tower '{name}' to stand for it; expected one with both, as 'clip'"
                )
            tower = models.of_config(module.config.towers[name])
            _warn(f"config.towers.{name}", config.towers[name], tower)
            config.towers[name] = _write(Path(directory) / name, tower)
        config.load.revision = config.load.subfolder = config.tokenizer = ""
        yield config


def _is_here(name, options):
    """Whether a backbone is embedded, a file or directory, or fetched; a wrong name of one of these counts as here."""
    if name in hub.embedded() or not ELSEWHERE.fullmatch(name) or ("://" not in name and Path(name).exists()):
        return True
    try:
        hub.find(name, **{key: options[key] or None for key in ("revision", "subfolder")})
    except InputError as error:
        log.debug("%s", error)
        return False
    return True


def _warn(key, name, module):
    count = sum(int(np.prod(x.shape)) for x in models.shapes_of(module, module.config.inputs).values())
    kind = models.described(module.config)["architecture"]
    section = "config.model" if key == "config.backbone" else key.replace("towers", "model")
    log.warning(
        "%s '%s' is not here: the %s of %s stands for it, of %.1f M parameters", key, name, kind, section, count / 1e6
    )


def _write(directory: Path, module: nn.Module) -> str:
    """Write a backbone of zeros in our own layout, whose file of weights takes no room on most disks."""
    directory.mkdir()
    values = models.described(module.config)
    of_text = values.get("text", values)
    if "eos_token" in of_text:
        of_text["eos_token"] = vocabularies.LAST_BYTE
    (directory / "config.json").write_bytes(files.as_json(values).encode())
    for name, content in vocabularies.files(vocabularies.BYTES).items() if "input_ids" in module.config.inputs else ():
        (directory / name).write_bytes(content)
    header, end = {}, 0
    for path, leaf in sorted(models.shapes_of(module, module.config.inputs).items()):
        begin, end = end, end + leaf.size * leaf.dtype.itemsize
        header[path] = {"dtype": DTYPES[leaf.dtype.name], "shape": leaf.shape, "data_offsets": [begin, end]}
    about = json.dumps(header).encode()
    about += b" " * (-len(about) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(about).to_bytes(8, "little") + about)
        file.truncate(8 + len(about) + end)
    return str(directory)
