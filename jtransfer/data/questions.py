"""Questions on words: analogies as `a is to b as c is to d`, and pairs of words with how alike people find them."""

import hashlib
from dataclasses import dataclass

import numpy as np
from etils import epath

from jtransfer import files
from jtransfer.data import records, tfds
from jtransfer.errors import InputError
from jtransfer.kinds import shown

LARGEST = 1 << 26
"""Bytes of a file of questions; that of word2vec has less than a hundredth."""
BLOCK = 1024
"""Questions that are read at a time."""
PARTS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Analogies:
    """Questions of four words.

    Attributes:
        words: a, b, c and d of each.
        categories: Of each, the number of its category.
        names: Of the categories.
        fingerprint: Digest of the file.
    """

    words: tuple[tuple[str, str, str, str], ...]
    categories: np.ndarray
    names: tuple[str, ...]
    fingerprint: str


def analogies(name: str, data_dir: str = "") -> Analogies:
    """Questions from a file like word2vec's `questions-words.txt`, or prepared by TensorFlow Datasets.

    Args:
        name: A file, in which a line `: NAME` begins a category and all others have four words; or
            `tfds:google_analogies`, whose split `test` has the features a, b, c, d and `category`.
        data_dir: Where prepared datasets lie.

    Raises:
        InputError: no such file or dataset, a line of more or fewer words, or no question at all.
    """
    if name.startswith("tfds:"):
        return _prepared(name, data_dir)
    path, content = _content(name, "questions")
    names, words, categories = [], [], []
    for number, line in _lines(path, content):
        if line.startswith(":"):
            names.append(line[1:].strip())
            continue
        found = line.split()
        if len(found) != 4:
            raise InputError(f"{path}, line {number}: {len(found)} words, {shown(line)}; expected 4, or ': CATEGORY'")
        names = names or [""]
        words.append(tuple(found))
        categories.append(len(names) - 1)
    if not words:
        raise InputError(f"{path}: there is no question; expected four words on every line")
    return Analogies(tuple(words), np.array(categories), tuple(names), _digest(content))


@dataclass(frozen=True)
class Alike:
    """Pairs of words, and how alike people find the two of each.

    Attributes:
        pairs: Two words each.
        scores: `[n]`, larger for what is more alike.
        fingerprint: Digest of the file.
    """

    pairs: tuple[tuple[str, str], ...]
    scores: np.ndarray
    fingerprint: str


def alike(name: str) -> Alike:
    """Pairs from a file that has two words and a number on every line, between tabs or commas.

    Blank lines and those that begin with `#` do not count, as in gensim's `evaluate_word_pairs`.

    Raises:
        InputError: no such file, a line of another form, or fewer than two pairs.
    """
    path, content = _content(name, "pairs")
    pairs, scores = [], []
    for number, line in _lines(path, content):
        if line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("\t" if "\t" in line else ",")]
        try:
            one, other, score = parts
            scores.append(float(score))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: {shown(line)}; expected two words and a number, between tabs or commas"
            ) from None
        pairs.append((one, other))
    if len(pairs) < 2 or not np.isfinite(scores).all():
        raise InputError(f"{path}: {len(pairs)} pairs; expected two at least, with finite numbers")
    return Alike(tuple(pairs), np.array(scores), _digest(content))


def _prepared(name, data_dir):
    data, _, _ = tfds.opened(name, name.removeprefix("tfds:"), data_dir)
    label = data.features.get("category")
    kinds = data.tfds.features
    texts = [part for part in PARTS if isinstance(data.features.get(part), kinds.Text)]
    if len(texts) != 4 or not isinstance(label, kinds.ClassLabel) or "test" not in data.splits:
        there = ", ".join(data.features)
        raise InputError(f"{name} has {there}; expected texts a, b, c, d and classes category, in a split test")
    records.check_shards(data, "test")
    source = records.of_split(data, "test")
    features = kinds.FeaturesDict({part: data.features[part] for part in (*PARTS, "category")})
    words, categories = [], []
    for start in range(0, len(source), BLOCK):
        for one in records.parsed(data, features, source, np.arange(start, min(start + BLOCK, len(source)))):
            words.append(tuple(one[part] if isinstance(one[part], str) else one[part].decode() for part in PARTS))
            categories.append(int(one["category"]))
    return Analogies(tuple(words), np.array(categories), tuple(label.names), records.contents(data, "test"))


def _content(name, what):
    path = files.path(name, what)
    try:
        return path, files.read(path, LARGEST)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a file of {what}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def _lines(path: epath.Path, content: bytes):
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]
