"""Word vectors in the files of others: word2vec's text and binary form, and GloVe's text, which has no header.

    text      3 2             binary    3 2              GloVe    the 0.1 0.2
              the 0.1 0.2               the <8 bytes>             of 0.3 0.4
              of 0.3 0.4                of <8 bytes>

Each is read and written in one pass, a word at a time; the table is in memory once, and while a file is read a few
thousand rows more. A file that ends in `.gz` is unpacked as it is read.
"""

import gzip
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from etils import epath

from jtransfer.checkpoints.names import LEAF, Names, Row
from jtransfer.checkpoints.tensors import Tensor
from jtransfer.data.words import PAD, UNKNOWN, Vocabulary
from jtransfer.errors import InputError, first_line
from jtransfer.kinds import shown
from jtransfer.models import WordVectorsConfig
from jtransfer.models.word_vectors import SPECIAL
from jtransfer.storage import parts

FORMATS = {"word2vec": "vectors.txt", "word2vec_binary": "vectors.bin", "glove": "vectors.txt"}
"""The name of the file that is written in each format."""
ENDINGS = (".txt", ".vec", ".bin", ".glove", ".w2v")
HEADER = re.compile(rb"\d{1,12} \d{1,12}[ \r]*\n")
PICKLED = b"PK", b"\x80"
"""How files begin that PyTorch writes: archives and pickles."""
LONGEST_WORD, LONGEST_LINE = 1 << 12, 1 << 20
"""Bytes of a word, and of a line of text."""
WIDEST, MOST = 1 << 16, 1 << 28
"""Values of a vector, and words of a file."""
ROWS = 4096
"""Rows that are put together at a time."""


def is_one(path: epath.Path) -> bool:
    """Whether a file is one of word vectors, by its name; one that ends in `.bin` unless it is PyTorch's."""
    name = path.name.removesuffix(".gz")
    if not path.is_file() or not name.endswith(ENDINGS):
        return False
    if name.endswith(".bin"):
        with _opened(path) as file:
            return not file.read(2).startswith(PICKLED)
    return True


def read(path: epath.Path) -> tuple[Vocabulary, np.ndarray]:
    """The words of a file and their vectors `[SPECIAL + words, width]` float32, in the order of the file.

    The first rows, of padding and of unknown words, are 0.

    Which of the formats it is follows from its first line, and from its name: a file with a header that ends in `.bin`
    is binary. Texts are read in small letters if no word has a capital one.

    Raises:
        InputError: with the number of the line, or of the word in a binary file: a header that is none or that claims
            other numbers than there are, a row with more or fewer numbers, what is no number or not finite, a word that
            stands twice or is no UTF-8, a file that breaks off, or no word at all.
    """
    binary = path.name.removesuffix(".gz").endswith(".bin")
    with _opened(path) as file:
        first = file.readline(LONGEST_LINE)
        header = HEADER.fullmatch(first)
        if not header and (binary or re.fullmatch(rb"\S+ \S+\s*", first)):
            raise InputError(f"{path}, line 1: {shown(first[:40])} is no header; expected how many words and how wide")
        claimed, width = map(int, first.split()) if header else (None, None)
        if header and not (0 < claimed <= MOST and 0 < width <= WIDEST):
            raise InputError(
                f"{path}, line 1: {claimed:,} words of {width:,} values; expected 1 to {MOST:,} of 1 to {WIDEST:,}"
            )
        found = _binary(path, file, claimed, width) if binary else _lines(path, file, first, width)
        words, blocks = {}, []
        while block := list(islice(found, ROWS)):
            for place, word, _ in block:
                if word in words:
                    raise InputError(f"{path}, {place}: the word {shown(word)} stands there a second time")
                if word in (PAD, UNKNOWN):
                    raise InputError(f"{path}, {place}: {word} stands for what is no word; leave the line out")
                words[word] = None
            blocks.append(np.stack([row for _, _, row in block]))
    if claimed is not None and len(words) != claimed:
        why = "the file broke off" if len(words) < claimed else "expected as many"
        raise InputError(f"{path}, line 1 claims {claimed:,} words, and there are {len(words):,}: {why}")
    if not words:
        raise InputError(f"{path}: there is no word; expected one on every line, and its vector")
    table, at = np.zeros((SPECIAL + len(words), blocks[0].shape[1]), np.float32), SPECIAL
    blocks.reverse()
    while blocks:  # and none is kept, so that the table is in memory once
        block = blocks.pop()
        table[at : at + len(block)] = block
        at += len(block)
    return Vocabulary(tuple(words), not any(word != word.lower() for word in words)), table


def _lines(path, file, first, width) -> Iterator[tuple[str, str, np.ndarray]]:
    """The place, the word and the vector of each line."""
    number, line = 1, first
    if width is not None:
        number, line = 2, file.readline(LONGEST_LINE)
    while line:
        place, line = f"line {number}", line.rstrip()
        if width is None:
            width = len(line.split(b" ")) - 1
        word, *values = line.rsplit(b" ", width)
        if len(values) != width or not word or width < 1 or _is_number(word.partition(b" ")[2].rpartition(b" ")[2]):
            there = len(line.split(b" ")) - 1
            raise InputError(f"{path}, {place}: {there} values behind {_shown(word)}; expected a word and {width}")
        try:
            with np.errstate(over="ignore"):  # told as infinite
                row = np.array([float(x) for x in values], np.float32)
        except ValueError:
            wrong = next(x for x in values if not _is_number(x))
            raise InputError(f"{path}, {place}: {_shown(wrong)} is no number") from None
        yield place, _word(path, place, word), _finite(path, place, row)
        number, line = number + 1, file.readline(LONGEST_LINE)


def _binary(path, file, count, width) -> Iterator[tuple[str, str, np.ndarray]]:
    """The place, the word and the vector of each word of a binary file."""
    size = 4 * width
    for number in range(1, count + 1):
        place, word = f"word {number}", bytearray()
        while (letter := file.read(1)) != b" ":
            if not letter or len(word) > LONGEST_WORD:
                why = "the file breaks off" if not letter else f"it has more than {LONGEST_WORD:,} bytes"
                raise InputError(f"{path}, {place} of {count:,}: {why}; expected a word, a space and {size:,} bytes")
            word += letter
        values = file.read(size)
        if len(values) != size:
            raise InputError(f"{path}, {place} of {count:,}: {len(values):,} bytes of {size:,}: the file breaks off")
        row = np.frombuffer(values, "<f4").astype(np.float32)
        yield place, _word(path, place, bytes(word).lstrip(b"\n")), _finite(path, place, row)
    if file.read(2) not in (b"", b"\n"):
        raise InputError(f"{path}: more follows behind the {count:,} words that line 1 claims")


def write(path: Path, words: tuple[str, ...], vectors: np.ndarray, format: str) -> None:
    """Write vectors `[words, width]` in one of `FORMATS`.

    Texts have as many digits as a float32 needs to be read back to the bit.

    Raises:
        InputError: a word that has a space in it, or is empty, which none of the formats can say.
    """
    if wrong := [word for word in words if not word or any(letter.isspace() for letter in word)]:
        raise InputError(f"{format}: the word {shown(wrong[0])} has a space in it or is empty; the format has no such")
    with open(path, "wb") as file:
        if format != "glove":
            file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        for word, row in zip(words, vectors, strict=True):
            if format == "word2vec_binary":
                file.write(word.encode() + b" " + row.astype("<f4").tobytes())
            else:
                file.write(f"{word} {' '.join(map(str, row.astype(np.float32)))}\n".encode())


def checkpoint(path: epath.Path) -> tuple[WordVectorsConfig, Names, dict[str, Tensor], dict[str, bytes]]:
    """The model that a file of vectors is, with its table of names, its tensors and the files of its tokenizer.

    Raises:
        InputError: as `read`.
    """
    vocabulary, table = read(path)
    config = WordVectorsConfig(vocabulary=len(vocabulary), width=table.shape[1], output=False)
    name = "in/embedding"
    tensors = {name: Tensor(table.shape, table.dtype, lambda: table)}
    return config, Names((Row(name, name, LEAF),)), tensors, vocabulary.files


@contextmanager
def _opened(path: epath.Path) -> Iterator[BinaryIO]:
    try:
        with ExitStack() as stack:
            file = stack.enter_context(parts.opened(path))
            yield stack.enter_context(gzip.GzipFile(fileobj=file)) if path.name.endswith(".gz") else file
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)})") from None


def _word(path, place, word):
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}, {place}: the word {_shown(word)} is no UTF-8") from None


def _finite(path, place, row):
    if not np.isfinite(row).all():
        raise InputError(f"{path}, {place}: {row[~np.isfinite(row)][0]} among its values; expected finite numbers")
    return row


def _is_number(value):
    try:
        float(value)
    except ValueError:
        return False
    return True


def _shown(value):
    return shown(value[:40].decode(errors="backslashreplace"))
