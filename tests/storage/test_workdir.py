"""A run's directory knows its config: what earlier versions left goes on, and what changes results is another run."""

import json

import pytest
from etils import epath
from ml_collections import ConfigDict

from jtransfer.config import defaults, train_defaults
from jtransfer.errors import InputError
from jtransfer.storage.workdir import check, claim, fingerprint

DEFAULTS = {"steps": 100, "templates": "", "load": {"image": 0, "tokens": 0}, "shots": [1]}
OURS = DEFAULTS | {"steps": 7, "fingerprints": {"data": "d", "backbone": "b", "preprocessing": "p"}}


@pytest.fixture
def old(tmp_path):
    """A directory of a version that knew neither templates nor the length of texts, nor how inputs were made."""
    config = {"steps": 7, "load": {"image": 0}, "shots": [1], "fingerprints": {"data": "d", "backbone": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return epath.Path(tmp_path)


def test_what_an_earlier_version_did_not_know_had_its_default_there_and_the_directory_keeps_its_config(old):
    before = json.loads((old / "config.json").read_text())
    assert claim(old, OURS, DEFAULTS) == before and fingerprint(claim(old, OURS, DEFAULTS)) == fingerprint(before)
    assert check(old, OURS | {"shots": [1, 2]}, DEFAULTS, ("shots",)) == before | {"shots": [1, 2]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"templates": "mine.txt"}, 'templates is "mine.txt" here and "" there'),
        ({"load": {"image": 0, "tokens": 64}}, "load.tokens is 64 here and 0 there"),
        ({"steps": 100}, "steps is 100 here and 7 there"),
        ({"fingerprints": {"data": "d", "backbone": "c", "preprocessing": "p"}}, "fingerprints.backbone is"),
        ({"unknown": 1}, "unknown is 1 here and null there"),
    ],
)
def test_a_key_that_it_lacks_and_that_is_set_now_makes_another_config(old, change, said):
    with pytest.raises(InputError, match="belongs to another config") as error:
        check(old, OURS | change, DEFAULTS)
    assert said in str(error.value)


def test_a_fingerprint_that_is_there_is_compared_and_a_directory_without_any_is_of_another_config(old):
    claim(old / "new", OURS, DEFAULTS)
    with pytest.raises(InputError, match='fingerprints.preprocessing is "q" here and "p" there'):
        check(old / "new", OURS | {"fingerprints": OURS["fingerprints"] | {"preprocessing": "q"}}, DEFAULTS)
    claim(old / "none", DEFAULTS, DEFAULTS)
    with pytest.raises(InputError, match="fingerprints is"):
        check(old / "none", DEFAULTS | {"fingerprints": OURS["fingerprints"]}, DEFAULTS)


def test_the_defaults_of_a_model_are_of_its_architecture():
    config = ConfigDict(train_defaults() | {"model": {"architecture": "gpt2", "width": 8}})
    assert defaults("train", config)["model"]["vocabulary"] == 50257
