"""A language model of words takes the words of other texts: what it knows stays, and the others begin as the mean."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies

import jtransfer as jt
from jtransfer import checkpoints, models
from jtransfer.data.dataset import Lazy
from jtransfer.errors import InputError
from jtransfer.starts.reworded import reworded

WORDS = ["xxpad", "xxunk", "xxend", "river", "bridge", "of", "stone"]
TEXTS = ["the river of stone", "the stone of bread", "bread and the river"]
KNOWN = {"<|endoftext|>": "xxend", "[UNK]": "xxunk", "river": "river", "of": "of", "stone": "stone"}
STREAM = SimpleNamespace(name="texts", rows=np.arange(3), inputs=Lazy(3, lambda rows: [TEXTS[i] for i in rows], ""))
SIZES = {
    "awd_lstm": {"width": 4, "hidden": 6, "layers": 2},
    "elmo": {"width": 4, "hidden": 6, "filters": (2, 2), "highways": 1},
    "gpt2": {"width": 4, "heads": 2, "depth": 1, "tied": False},
}


def saved(directory, architecture, model=None):
    """A language model, and a tokenizer of words that has other names for what is no word."""
    kind = model or vocabularies.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="xxunk")
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = models.build(architecture, vocabulary=len(WORDS), **SIZES[architecture])
    head = plain.config.language_head
    whole = models.Headed(plain, head)
    rng = np.random.default_rng(0)
    tree = {
        path: rng.normal(size=x.shape).astype("f4") for path, x in models.shapes_of(whole, plain.config.inputs).items()
    }
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    files["tokenizer_config.json"] = json.dumps({"pad_token": "xxpad", "eos_token": "xxend"}).encode()
    checkpoints.save(directory, plain, tree, (), None, files, head)
    return str(directory)


def expected(leaf, axis, words):
    """The leaf row by row, as its rule says it."""
    rows = np.moveaxis(leaf, axis, 0)
    found = [rows[WORDS.index(KNOWN[word])] if word in KNOWN else rows.mean(0) for word in words]
    return np.moveaxis(np.array(found), 0, axis)


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        ("awd_lstm", {"embeddings/word/embedding": 0, "source_head/bias": 0}),
        ("elmo", {"source_head/kernel": 1, "source_head/bias": 0}),
        ("gpt2", {"embeddings/word/embedding": 0, "source_head/kernel": 1}),
    ],
)
@pytest.mark.parametrize("least", [1, 2])
def test_words_that_are_known_keep_their_rows_and_the_others_begin_as_the_mean_of_all(
    architecture, changed, least, tmp_path
):
    backbone = jt.load(saved(tmp_path / "model", architecture), sharding="host")
    found = reworded(backbone, f"words(least={least})", STREAM)
    ids = found.preprocess.words()
    words = sorted(ids, key=ids.get)
    assert ("bridge" not in words) and ("and" in words) == (least == 1), "the words are those of the texts"
    assert found.config.vocabulary == found.head.classes == len(words)
    assert (len(words) == len(WORDS)) == (least == 2 and architecture != "elmo"), "a size is no vocabulary"
    for path, leaf in backbone.params.items():
        wanted = expected(leaf, changed[path], words) if path in changed else leaf
        np.testing.assert_allclose(found.params[path], wanted, rtol=1e-6, err_msg=path)
    assert found.fingerprint != backbone.fingerprint
    if architecture != "elmo":
        assert found.config.eos_tokens == (ids["<|endoftext|>"],)


def test_a_backbone_that_does_not_read_whole_words_is_refused_by_name(tmp_path):
    pieces = vocabularies.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="xxunk")
    backbone = jt.load(saved(tmp_path / "model", "awd_lstm", pieces), sharding="host")
    with pytest.raises(InputError, match=r"config.tokenizer 'words\(\)': backbone '.*' has a tokenizer WordPiece"):
        reworded(backbone, "words()", STREAM)
    backbone = jt.load(saved(tmp_path / "other", "awd_lstm"), sharding="host")
    with pytest.raises(
        InputError, match=r"config.tokenizer 'bytes' has a tokenizer BPE; .*; leave config.tokenizer out"
    ):
        reworded(backbone, "bytes", STREAM)
