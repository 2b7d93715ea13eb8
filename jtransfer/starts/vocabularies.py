"""The tokenizer of a model that is trained from scratch, as the files that Hugging Face's CLIPTokenizer reads."""

import dataclasses
import gzip
import io
import json
import tempfile
from pathlib import Path

from etils import epath
from tokenizers import pre_tokenizers

from jtransfer import files as file_paths
from jtransfer.data import keys, text
from jtransfer.errors import InputError, nearest
from jtransfer.files import read as read_bytes

BYTES = "bytes"
"""Name of the tokenizer that has one token for each byte."""
LAST_BYTE = 513
"""The token that ends a text of bytes."""
START, END = "<|startoftext|>", "<|endoftext|>"
Files = dict[str, bytes]

LARGEST_MERGES = 1 << 24
"""Bytes of a file of merges, packed or not; CLIP's has 3 million."""


def files(name: str, known: tuple[str, ...] = (BYTES,)) -> Files:
    """The files of a tokenizer.

    Args:
        name: "bytes" for one token a byte, of texts in small letters, as CLIP reads all texts; a file of merges like
            CLIP's `bpe_simple_vocab_16e6.txt.gz`, whose first 48,894 merges are taken, as OpenAI and open_clip do; or a
            checkpoint with a tokenizer, a directory or a name on the hub.
        known: Names that are no checkpoint's, for an error.

    Returns:
        The content of each file, by its name.

    Raises:
        InputError: nothing of that name, a file that is no gzip file of merges, or a checkpoint without a tokenizer.
    """
    if name == BYTES:
        return _byte_pairs([])
    path = file_paths.path(name, "config.tokenizer")
    if path.is_file():
        try:
            lines = _unpacked(path).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
            return _byte_pairs([tuple(line.split()) for line in lines], clean="lower")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"config.tokenizer: {name} is no gzip file of merges ({error})") from None
    directory = path if path.is_dir() else _from_hub(name, known)
    found = text.files_in(directory)
    if not found:
        raise InputError(f"config.tokenizer: {name} has no tokenizer.json, nor another file of a tokenizer")
    if found.keys() == {"vocab.txt"}:  # as the first checkpoints of BERT, whose config.json alone says so
        found["tokenizer_config.json"] = json.dumps({"tokenizer_class": "BertTokenizer"}).encode()
    return found


def tokenizer(found: Files, names: tuple[str, ...], longest: int, whole: bool) -> text.Tokenizer:
    """The tokenizer in some files.

    Args:
        found: The content of each file, by its name.
        names: Names of the model's inputs.
        longest: The most tokens that the model has positions for.
        whole: Whether every text is padded to the full length, and no mask is given.

    Raises:
        InputError: the files are damaged, or hold no tokenizer that is known.
    """
    with tempfile.TemporaryDirectory() as directory:
        for name, content in found.items():
            (Path(directory) / name).write_bytes(content)
        try:
            made = text.tokenizer(epath.Path(directory), {}, names, longest, whole)
        except InputError as error:
            raise InputError(f"config.tokenizer: {str(error).replace(f'{directory}/', '')}") from None
    return dataclasses.replace(made, where="config.tokenizer")


def _unpacked(path):
    """What is in a gzip file, which may claim to be any size."""
    with gzip.GzipFile(fileobj=io.BytesIO(read_bytes(path, LARGEST_MERGES))) as file:
        content = file.read(LARGEST_MERGES + 1)
    if len(content) > LARGEST_MERGES:
        raise ValueError(f"it unpacks to more than {LARGEST_MERGES:,} bytes")
    return content


def _byte_pairs(merges: list[tuple[str, str]], clean: str = "") -> Files:
    """CLIP's: the bytes, the bytes that end a word, the merges in their order, and two special tokens.

    With `clean` the settings name what is done to texts first, in a key of our own that transformers does not read.
    """
    # OpenAI's order: the printable bytes first, then the others, which stand for themselves from 256 on.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    settings = {"tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "pad_token": END}
    settings |= {"clean": clean} if clean else {}
    return {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]).encode() + b"\n",
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def _from_hub(name: str, known: tuple[str, ...]) -> epath.Path:
    from jtransfer.checkpoints import hub

    try:
        return hub.snapshot(name, list(keys.FILES))
    except Exception as error:  # whatever the network and its libraries raise
        raise InputError(
            f"config.tokenizer: unknown '{name}', {nearest(name, known)}: no file, no directory, not in the hub's "
            f"cache, which cannot be filled from here ({type(error).__name__})"
        ) from None
