"""CLIP's own cleaning of texts: values are those of open_clip 3.3.0 (`SimpleTokenizer`, `get_clean_fn`), noted here."""

import gzip
import io
import json
from pathlib import Path

import pytest

from jtransfer.data.cleaning import cleaner
from jtransfer.errors import InputError
from jtransfer.starts import vocabularies

MERGES = Path(__file__).parents[3] / "shared" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
START, END = 49406, 49407


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lower", "  “Curly”\u00a0quotes —\tdash ", '"curly" quotes — dash'),
        ("lower", "Ã©tÃ© M&amp;amp;M's", "été m&m's"),
        ("lower", "ﬁne ｆｕｌｌ e\u0301", "fine full é"),
        ("whitespace", "&lt;b&gt; Don’t", "<b> Don't"),
        ("canonicalize", "A_photo, of: (a) Cat's!", "a photo of a cats"),
    ],
)
def test_texts_are_repaired_unescaped_and_their_space_made_one(name, text, expected):
    assert cleaner(name)(text) == expected


def test_an_unknown_way_of_cleaning_is_refused():
    with pytest.raises(InputError, match="clean: unknown 'lowr'; did you mean 'lower'"):
        cleaner("lowr")


@pytest.fixture
def small(tmp_path):
    """A file of a few merges, as CLIP's."""
    merges = ["#version", "d o", "do n", "n o", "no t</w>", "a n", "an d</w>"]
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress("\n".join(merges).encode()))
    return vocabularies.files(str(tmp_path / "bpe.txt.gz"))


def test_a_vocabulary_of_clips_merges_cleans_and_its_files_say_so(small, tmp_path):
    assert json.loads(small["tokenizer_config.json"])["clean"] == "lower"
    names = ("input_ids", "attention_mask")
    curly = vocabularies.tokenizer(small, names, 20, False)
    found = curly(["DON’T &amp;amp; not", "don't & not"])["input_ids"]
    assert found[0].tolist() == found[1].tolist()
    for name, content in small.items():
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    again = vocabularies.tokenizer(vocabularies.files(str(tmp_path / "again")), names, 20, False)
    assert (again(["DON’T &amp;amp; not"])["input_ids"] == found[0]).all()


def test_bytes_are_read_as_they_are(tmp_path):
    assert "clean" not in json.loads(vocabularies.files("bytes")["tokenizer_config.json"])


@pytest.mark.skipif(not MERGES.exists(), reason=f"{MERGES} is not there")
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("don’t", [847, 713]),
        ("M&amp;M's", [332, 261, 332, 568]),
        ("a photo of a cat.", [320, 1125, 539, 320, 2368, 269]),
    ],
)
def test_ids_of_clips_own_merges_are_those_of_open_clip(text, ids):
    read = vocabularies.tokenizer(vocabularies.files(str(MERGES)), ("input_ids", "attention_mask"), 77, False)
    assert read([text])["input_ids"][0, : len(ids) + 2].tolist() == [START, *ids, END]


def test_merges_that_unpack_to_far_more_than_any_are_refused(tmp_path):
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    (tmp_path / "bomb.gz").write_bytes(packed.getvalue())
    with pytest.raises(InputError, match=r"is no gzip file of merges \(it unpacks to more than 16,777,216 bytes\)"):
        vocabularies.files(str(tmp_path / "bomb.gz"))
