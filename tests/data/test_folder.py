"""Folders of image files: which rows there are, what is decoded when, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from jtransfer.data.sources import fingerprint, load
from jtransfer.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)


def fill(directory, count, ending=".png", start=0):
    directory.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(PIXELS[start + i]).save(directory / f"{i:02}{ending}")


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "dog", 6)
    fill(tmp_path / "cat", 10, start=6)
    return tmp_path


def refusal(name):
    with pytest.raises(InputError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_directories_are_classes_in_alphabetical_order_and_a_fifth_of_each_is_held_out(root):
    dataset = load(f"folder:{root}")
    assert dataset.classes == ("cat", "dog") and dataset.kind == "image"
    assert dataset.labels.tolist() == [0] * 10 + [1] * 6 and dataset.labels.dtype == np.int32
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 1]
    assert sorted([*dataset.pool, *dataset.test]) == list(range(16))
    np.testing.assert_array_equal(dataset.inputs[[10]][0], PIXELS[0])
    assert dataset.note == ""


def test_train_and_test_may_be_given(tmp_path):
    fill(tmp_path / "train" / "cat", 3)
    fill(tmp_path / "train" / "dog", 3, ".JPEG")
    fill(tmp_path / "test" / "dog", 2, ".webp")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (dataset.pool.tolist(), dataset.test.tolist()) == ([*range(6)], [6, 7])
    assert {image.shape for image in dataset.inputs[:]} == {(4, 5, 3)}


def test_a_class_may_be_called_train(root):
    fill(root / "train", 5)
    assert load(f"folder:{root}").classes == ("cat", "dog", "train")


def test_grey_images_have_one_channel_and_transparent_parts_become_white(root):
    Image.fromarray(PIXELS[0, ..., 0]).save(root / "cat" / "00.png")
    clear = np.dstack([PIXELS[0], np.zeros((4, 5), np.uint8)])
    Image.fromarray(clear).save(root / "cat" / "01.png")
    Image.fromarray(PIXELS[0]).quantize(16).save(root / "cat" / "02.png")
    grey, white, palette = load(f"folder:{root}").inputs[:3]
    np.testing.assert_array_equal(grey, PIXELS[0, ..., :1])
    assert white.shape == (4, 5, 3) and (white == 255).all()
    assert palette.shape == (4, 5, 3) and palette.dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_damaged_file_is_named_when_its_row_is_asked_for_and_not_before(root, content):
    (root / "cat" / "03.png").write_bytes(content)
    dataset = load(f"folder:{root}")
    assert len(dataset.inputs[:3]) == 3
    with pytest.raises(InputError, match=rf"^image {root}/cat/03.png cannot be read \([^<\n]*\)$"):
        dataset.inputs[:4]


def test_a_truncated_file_and_one_of_16_bits_are_named(root):
    content = (root / "cat" / "03.png").read_bytes()
    (root / "cat" / "03.png").write_bytes(content[:-30])
    Image.fromarray(np.full((4, 5), 1000, np.uint16)).save(root / "cat" / "04.png")
    dataset = load(f"folder:{root}")
    with pytest.raises(InputError, match=r"^image .*/cat/03.png cannot be read"):
        dataset.inputs[[3]]
    with pytest.raises(InputError, match=r"^image .*/cat/04.png has mode 'I;16', more than 8 bits"):
        dataset.inputs[[4]]


def test_the_fingerprint_is_of_names_and_sizes(root, tmp_path_factory):
    base = fingerprint(load(f"folder:{root}"))
    elsewhere = tmp_path_factory.mktemp("other")
    fill(elsewhere / "dog", 6)
    fill(elsewhere / "cat", 10, start=6)
    assert fingerprint(load(f"folder:{elsewhere}")) == base
    (elsewhere / "cat" / "09.png").rename(elsewhere / "cat" / "10.png")
    assert fingerprint(load(f"folder:{elsewhere}")) != base


def test_what_cannot_be_used_is_refused(root, tmp_path_factory):
    assert refusal("folder:").startswith("folder:: no such directory; expected folder:DIR")
    assert refusal(f"folder:{root}/none") == (
        f"{root}/none: no such directory; expected folder:DIR with one directory a class"
    )
    assert refusal(f"folder:{root / 'cat'}").endswith("expected at least two classes, found none")
    (root / "owl").mkdir()
    (root / "owl" / "notes.txt").touch()
    (root / ".cache").mkdir()
    assert refusal(f"folder:{root}").endswith(
        "owl holds no images; expected files ending in .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff or .webp"
    )
    split = tmp_path_factory.mktemp("split")
    fill(split / "train" / "cat", 2)
    assert refusal(f"folder:{split}").endswith(
        "'train' holds classes, but there is no 'test' or 'val' that does; give both or none"
    )
    fill(split / "train" / "dog", 2)
    fill(split / "test" / "dgo", 2)
    assert refusal(f"folder:{split}").endswith("class 'dgo' is not in 'train'; did you mean 'dog'?")
