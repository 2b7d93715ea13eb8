"""Word vectors in the formats of word2vec and GloVe, as gensim reads and writes them, and what damage is told."""

import gzip

import numpy as np
import pytest

import jtransfer as jt
from jtransfer.checkpoints import vectors
from jtransfer.errors import InputError
from jtransfer.models.word_vectors import table

WORDS = ("the", "of", "naïve", "king")
ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture
def written(tmp_path):
    def write(format, rows=ROWS, words=WORDS):
        path = tmp_path / vectors.FORMATS[format]
        vectors.write(path, words, rows, format)
        return path

    return write


@pytest.mark.parametrize("format", vectors.FORMATS)
def test_gensim_reads_what_is_written_and_writes_the_same_bytes(format, written, tmp_path):
    models = pytest.importorskip("gensim.models", reason="gensim is not installed")
    path, binary = written(format), format == "word2vec_binary"
    peer = models.KeyedVectors.load_word2vec_format(str(path), binary=binary, no_header=format == "glove")
    assert tuple(peer.index_to_key) == WORDS
    np.testing.assert_array_equal(peer.vectors, ROWS)
    peer.save_word2vec_format(str(tmp_path / "back"), binary=binary, write_header=format != "glove")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("format", vectors.FORMATS)
def test_vectors_come_back_to_the_bit_and_a_text_becomes_the_mean_of_its_words(format, written):
    backbone = jt.load(str(written(format)))
    np.testing.assert_array_equal(table(backbone.config, backbone.params), ROWS)
    found = backbone(backbone.preprocess(["The king, naïve"]))["features"]
    np.testing.assert_allclose(found[0], ROWS[[0, 3, 2]].mean(0), rtol=1e-6)


def test_a_packed_file_and_the_new_lines_of_word2vecs_own_tool_are_read(written, tmp_path):
    plain = written("word2vec").read_bytes()
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(plain))
    found = vectors.read(tmp_path / "packed.txt.gz")[1]
    np.testing.assert_array_equal(found, [[0] * 3] * 2 + ROWS.tolist())
    rows = b"".join(word.encode() + b" " + row.tobytes() + b"\n" for word, row in zip(WORDS, ROWS, strict=True))
    (tmp_path / "own.bin").write_bytes(b"4 3\n" + rows)
    assert vectors.read(tmp_path / "own.bin")[0].words == WORDS


DAMAGED = {
    "wrong.txt": (b"3\xc3 2\na 1 2\n", "line 1: .* is no header"),
    "zero.txt": (b"0 2\n", "line 1: 0 words of 2 values; expected 1 to"),
    "more.txt": (b"3 2\na 1 2\nb 1 2\n", "line 1 claims 3 words, and there are 2: the file broke off"),
    "fewer.txt": (b"1 2\na 1 2\nb 1 2\n", "line 1 claims 1 words, and there are 2: expected as many"),
    "wide.txt": (b"1 2\na 1 2 3\n", "line 2: 3 values behind .*; expected a word and 2"),
    "glove.txt": (b"a 1 2\nb 1 2 3\n", "line 2: 3 values behind .*; expected a word and 2"),
    "short.txt": (b"2 2\na 1 2\nb 1\n", "line 3: 1 values behind 'b'|line 3: 1 values behind"),
    "number.txt": (b"2 2\na 1 2\nb 1 x\n", "line 3: 'x' is no number"),
    "nan.txt": (b"a 1 2\nb 1 nan\n", "line 2: nan among its values"),
    "twice.txt": (b"a 1 2\nb 1 2\na 1 2\n", "line 3: the word 'a' stands there a second time"),
    "letters.txt": (b"a 1 2\n\xff 1 2\n", "line 2: the word .* is no UTF-8"),
    "cut.bin": (b"2 2\na " + bytes(8) + b"b " + bytes(5), "word 2 of 2: 5 bytes of 8: the file breaks off"),
    "word.bin": (b"2 2\na " + bytes(8) + b"b", "word 2 of 2: the file breaks off"),
    "behind.bin": (b"1 2\na " + bytes(8) + b"b " + bytes(8), "more follows behind the 1 words"),
    "header.bin": (b"a " + bytes(8), "line 1: .* is no header"),
    "large.txt": (b"a 1 2\nb 1e99 2\n", "line 2: inf among its values"),
    "inf.bin": (b"1 1\na " + np.float32(np.inf).tobytes(), "word 1: inf among its values"),
    "broken.txt.gz": (gzip.compress(b"a 1 2\n")[:-9], "cannot be read"),
    "empty.txt": (b"", "there is no word"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_in_one_line_with_its_place(name, tmp_path):
    content, said = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        jt.load(str(tmp_path / name))
    assert "\n" not in str(refused.value) and name in str(refused.value)


def test_words_of_glove_may_have_spaces_in_them_as_those_of_the_published_files_have(tmp_path):
    (tmp_path / "own.txt").write_bytes(b"a 1 2\n. . . 3 4\n2 5 6\n")
    found, rows = vectors.read(tmp_path / "own.txt")
    assert found.words == ("a", ". . .", "2") and rows[2:].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_word_with_a_space_cannot_be_written(written):
    with pytest.raises(InputError, match="the word 'new york' has a space in it"):
        written("word2vec", ROWS[:1], ("new york",))
