"""Mixtures: shares of each dataset, the order of its rows, and batches that depend on the seed and the place alone."""

import numpy as np
import pytest

from jtransfer.data import mixtures
from jtransfer.data.dataset import fingerprint
from jtransfer.data.sources import load, modules, open_pairs, open_stream
from jtransfer.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files of grey images; the value of an image tells its file and row: 0.., 100.. and 200.. of 255."""
    root = tmp_path_factory.mktemp("mixture")
    for name, count, first in (("one", 40, 0), ("two", 10, 100), ("three", 25, 200)):
        images = (first + np.arange(count, dtype=np.uint8))[:, None, None].repeat(4, 1).repeat(4, 2)
        captions = [f"{name} {row}" for row in range(count)]
        keys = {"labels": np.arange(count) % 2, "classes": ["even", "odd"]}
        np.savez(root / f"{name}.npz", images=images, **keys, test_images=images[:4], test_labels=np.arange(4) % 2)
        np.savez(root / f"{name}_pairs.npz", images=images, captions=captions)
    return root


def mixed(files, *weights, names=("one", "two", "three"), ending=""):
    return " + ".join(f"{w}*npz:{files}/{name}{ending}.npz" for w, name in zip(weights, names, strict=False))


def values(stream, count, cursor=0):
    """The values of the images of some batches, `[count, batch]`."""
    found = []
    for batch, _ in stream.batches(cursor):
        images = batch["inputs"][np.arange(len(batch["inputs"]))]
        found.append([round(255 * float(image.mean())) for image in images])
        assert [value % 2 for value in found[-1]] == batch["labels"].tolist()
        if len(found) == count:
            return np.array(found)


def test_each_dataset_has_its_share_of_a_block_and_its_rows_come_once_an_epoch(files):
    found = values(open_stream(mixed(files, 6, 3, 1), 1 << 10, 0), 64).reshape(-1)
    of = found // 100
    assert len(found) == mixtures.BLOCK
    np.testing.assert_allclose(np.bincount(of), mixtures.BLOCK * np.array([0.6, 0.3, 0.1]), atol=1)
    for number, count in ((0, 40), (1, 10), (2, 25)):
        own = found[of == number][: count * 3].reshape(3, count)
        assert all(sorted(epoch) == list(range(100 * number, 100 * number + count)) for epoch in own)
        assert len({tuple(epoch) for epoch in own}) == 3
    shares = np.array([np.bincount(part, minlength=3) for part in of.reshape(64, -1)]) / 1024
    assert 0.003 < shares[:, 0].std() < 0.03, "shares of a batch vary as those of draws do: 0.015"


def test_a_batch_follows_from_the_seed_and_its_step_on_any_number_of_processes(files):
    name = mixed(files, 0.5, 0.5)
    whole = values(open_stream(name, 1000, 3), 68)
    assert whole[:65].size < mixtures.BLOCK < whole[:66].size
    np.testing.assert_array_equal(values(open_stream(name, 1000, 3), 2, cursor=66), whole[66:])
    parts = [values(open_stream(name, 1000, 3, np.arange(500) + i), 3, cursor=64) for i in (0, 500)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole[64:67])
    assert (values(open_stream(name, 1000, 4), 1) != whole[:1]).any()


def test_what_the_first_holds_out_is_tested_on_and_each_part_counts_in_the_fingerprint(files):
    stream = open_stream(mixed(files, 2, 1), 4, 0)
    alone = load(f"npz:{files}/one.npz")
    assert len(stream.held_out[2]) == 4 and stream.classes == ("even", "odd")
    np.testing.assert_array_equal(stream.held_out[1][np.arange(4)], alone.inputs[alone.test])
    prints = {open_stream(mixed(files, *weights), 4, 0).fingerprint for weights in ((2, 1), (1, 2), (2, 1, 1))}
    prints |= {fingerprint(alone), open_stream(mixed(files, 2, 1, names=("two", "one")), 4, 0).fingerprint}
    assert len(prints) == 5


def test_pairs_are_mixed_with_their_captions(files):
    stream = open_pairs(mixed(files, 1, 1, ending="_pairs"), 64, 0)
    (batch, _) = next(stream.batches(0))
    images = [int(image.mean()) for image in batch["images"][np.arange(64)]]
    assert batch["texts"] == [f"{('one', 'two')[value // 100]} {value % 100}" for value in images]
    assert 16 < sum(value < 100 for value in images) < 48


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1*digits", "mixes one dataset; expected two"),
        ("1*digits + 2*digits", "has digits twice"),
        ("1*digits + 0*npz:{}/one.npz", "at least 0.001 of all weights for npz:"),
        pytest.param("1*digits + 1*glyphs", "glyphs is a stream of batches; a mixture is", marks=pytest.mark.slow),
        ("1*digits + 1*npz:{}/one.npz", r"one.npz has 2 classes, digits 10 classes; a mixture is of one kind"),
        ("1*digits + 1*dig", "dataset 'dig' is unknown"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(files, name, message):
    with pytest.raises(InputError, match=message):
        open_stream(name.replace("{}", str(files)), 4, 0)


def test_a_curve_takes_no_mixture_and_modules_of_all_parts_are_found(files):
    with pytest.raises(InputError, match="is a mixture, which jtransfer train alone reads"):
        load(mixed(files, 1, 1))
    assert modules(mixed(files, 1, 1)) == {}
