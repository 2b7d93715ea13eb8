"""Folders of image files: which rows there are, what is decoded when, and what is refused."""

import io
import os
import socket

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_stream
from jtransfer.errors import InputError
from jtransfer.storage.workdir import claim

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


def test_the_fingerprint_is_of_names_and_contents(root, tmp_path_factory):
    base = fingerprint(load(f"folder:{root}"))
    elsewhere = tmp_path_factory.mktemp("other")
    fill(elsewhere / "dog", 6)
    fill(elsewhere / "cat", 10, start=6)
    assert fingerprint(load(f"folder:{elsewhere}")) == base
    (elsewhere / "cat" / "09.png").rename(elsewhere / "cat" / "10.png")
    assert fingerprint(load(f"folder:{elsewhere}")) != base


def uncompressed(path, value):
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, compress_level=0)


def test_replaced_files_of_equal_size_and_time_are_other_data_of_the_same_names(tmp_path):
    for i in range(8):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        uncompressed(path, i)
    before, status = fingerprint(load(f"folder:{tmp_path}")), path.stat()
    uncompressed(path, 99)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    after = fingerprint(load(f"folder:{tmp_path}"))
    assert after != before and after.split(".")[0] == before.split(".")[0]


def test_a_workdir_that_knew_the_folder_by_names_and_sizes_goes_on_as_it_was(root, tmp_path):
    ours = fingerprint(load(f"folder:{root}"))
    workdir = epath.Path(tmp_path / "run")
    earlier = ours.split(".")[0]
    claim(workdir, {"fingerprints": {"data": earlier}}, {})
    assert (
        claim(workdir, {"fingerprints": {"data": ours}}, {})["fingerprints"]["data"] == earlier
    )  # as its cells have it
    with pytest.raises(InputError, match="fingerprints.data is"):
        claim(workdir, {"fingerprints": {"data": "-" + ours[1:]}}, {})
    claim(workdir / "new", {"fingerprints": {"data": ours}}, {})
    for other in (ours[:-1] + "-", "-" + ours[1:], earlier):
        with pytest.raises(InputError, match="fingerprints.data is"):
            claim(workdir / "new", {"fingerprints": {"data": other}}, {})


@pytest.mark.parametrize("ending", [".bmp", ".gif", ".tif", ".TIFF", ".WebP", ".JPG"])
def test_every_ending_counts_in_small_and_capital_letters_and_in_sub_folders(root, ending):
    fill(root / "dog" / "2023" / "may", 2, ending, start=10)
    fill(root / "dog" / "2022", 1, ending, start=9)
    dataset = load(f"folder:{root}")
    assert np.bincount(dataset.labels).tolist() == [10, 9] and dataset.note == ""
    assert [image.shape for image in dataset.inputs[10:]] == [(4, 5, 3)] * 9
    if ending in (".bmp", ".TIFF"):
        np.testing.assert_array_equal(dataset.inputs[[16]][0], PIXELS[9])  # 0.png to 5.png stand before 2022


def test_what_is_left_out_is_counted_and_said(root, caplog):
    for name in ("notes.txt", "a.heic", "b.heic", "Makefile", ".DS_Store"):
        (root / "cat" / name).touch()
    (root / "dog" / ".git").mkdir()
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "README.md").touch()
    said = load(f"folder:{root}").note
    for part in (
        "1 .txt",
        "2 .heic",
        "1 without an ending",
        "1 hidden",
        "2 hidden directories",
        "1 beside the classes",
    ):
        assert part in said
    assert said in caplog.text and len(load(f"folder:{root}").labels) == 16


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_val_is_reported_where_there_is_no_test(tmp_path, train, val):
    for split, count in ((train, 4), (val, 2)):
        for label in ("cat", "dog"):
            fill(tmp_path / split / label, count)
    dataset = load(f"folder:{tmp_path}")
    assert (dataset.pool.tolist(), dataset.test.tolist()) == ([*range(8)], [*range(8, 12)])
    assert dataset.note == f"The test rows are those of '{val}', as there is no 'test'."


@pytest.mark.parametrize(
    ("train", "test"), [("train2017", "val2017"), ("Training Data", "Test Data"), ("train_set", "test_set")]
)
def test_splits_are_known_by_longer_names_and_are_no_classes(tmp_path, train, test):
    for split, count in ((train, 4), (test, 2)):
        for label in ("cat", "dog"):
            fill(tmp_path / split / label, count)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.classes == ("cat", "dog") and dataset.test.tolist() == [*range(8, 12)]


def test_classes_with_splits_in_them_are_refused_and_those_with_other_directories_are_read(tmp_path):
    for label in ("cat", "dog"):
        for part in ("train", "indoors"):
            fill(tmp_path / label / part, 2)
    assert load(f"folder:{tmp_path}").classes == ("cat", "dog")
    fill(tmp_path / "dog" / "Test", 1)
    with pytest.raises(InputError, match="dog: a class holds 'Test' and 'train'; expected .* as DIR/Test/dog"):
        load(f"folder:{tmp_path}")


def test_beside_train_and_test_val_and_other_directories_are_counted_and_said(tmp_path):
    for split, count in (("train", 4), ("val", 3), ("test", 2), ("notes", 1)):
        for label in ("cat", "dog"):
            fill(tmp_path / split / label, count)
    dataset = load(f"folder:{tmp_path}")
    assert len(dataset.labels) == 12 and len(dataset.test) == 4
    assert "The 6 images of 'val' are not used: the test rows are those of 'test'." in dataset.note
    assert "Left out: 1 of the directories beside the splits ('notes')." in dataset.note
    fill(tmp_path / "valid" / "cat", 1)
    assert "'val' and 'valid' both hold classes; keep one" in refusal(f"folder:{tmp_path}")


def link_out(root):
    fill(root.parent / "elsewhere", 3)
    (root / "cat" / "90.png").symlink_to(root.parent / "elsewhere" / "00.png")


def link_class_out(root):
    fill(root.parent / "elsewhere", 3)
    (root / "owl").symlink_to(root.parent / "elsewhere")


def link_to_nothing(root):
    (root / "cat" / "90.png").symlink_to(root / "nothing.png")


def link_to_itself(root):
    (root / "cat" / "90.png").symlink_to(root / "cat" / "90.png")


def link_up(root):
    (root / "cat" / "all").symlink_to(root)


def class_twice(root):
    (root / "kitten").symlink_to(root / "cat")


def billions(root):
    for i in range(40):
        (root / "cat" / f"d{i}").mkdir()
        for j in range(2):
            (root / "cat" / f"d{i}" / f"l{j}").symlink_to(root / "cat" / f"d{i + 1}")
    (root / "cat" / "d40").mkdir()


def pipe(root):
    os.mkfifo(root / "cat" / "90.png")


def bound(root):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "c.png"))
    (root / "c.png").rename(root / "cat" / "90.png")


def device(root):
    (root / "cat" / "90.png").symlink_to("/dev/zero")


def huge(root):
    with (root / "cat" / "90.png").open("wb") as file:
        file.truncate(1 << 40)


def no_utf8(root):
    os.mkdir(os.fsencode(root) + b"/caf\xe9")


def two_lines(root):
    (root / "a\nb").mkdir()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (link_out, "cat/90.png leads to "),
        (link_class_out, "owl leads to "),
        (link_to_nothing, "cat/90.png is a link that cannot be followed (No such file or directory)"),
        (link_to_itself, "cat/90.png is a link that cannot be followed (Too many levels of symbolic links)"),
        (link_up, "which is read already; remove one of them"),
        (class_twice, "kitten is a link to "),
        (billions, "which is read already; remove one of them"),
        (pipe, "cat/90.png is a pipe, a socket or a device; expected an image file"),
        (bound, "cat/90.png is a pipe, a socket or a device; expected an image file"),
        (device, "cat/90.png leads to /dev/zero, outside of "),
        (huge, "cat/90.png cannot be read (1,099,511,627,776 bytes; at most 536,870,912 are read)"),
        (no_utf8, "class 'caf\\udce9' is not UTF-8, or has control characters; rename it"),
        (two_lines, "class 'a\\nb' is not UTF-8, or has control characters; rename it"),
    ],
)
def test_what_leads_elsewhere_or_nowhere_is_refused_by_name_and_at_once(tmp_path, make, said):
    root = tmp_path / "root"
    for label in ("cat", "dog"):
        fill(root / label, 3)
    make(root)
    assert said in refusal(f"folder:{root}")


def test_the_folder_may_be_a_link_and_so_may_files_in_it(tmp_path):
    fill(tmp_path / "root" / "all", 4)
    for i in range(4):
        label = tmp_path / "root" / "train" / "ab"[i % 2]
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{i}.png").symlink_to(os.path.relpath(tmp_path / "root" / "all" / f"{i:02}.png", label))
        fill(tmp_path / "root" / "test" / "ab"[i % 2], 1) if i < 2 else None
    (tmp_path / "link").symlink_to(tmp_path / "root")
    dataset = load(f"folder:{tmp_path / 'link'}")
    np.testing.assert_array_equal(dataset.inputs[[2]][0], PIXELS[1])


def test_a_file_whose_name_is_not_utf8_is_read_and_named_in_one_line(root):
    path = os.fsencode(root) + b"/cat/caf\xe9.png"
    content = (root / "cat" / "00.png").read_bytes()
    with open(path, "wb") as file:
        file.write(content)
    dataset = load(f"folder:{root}")
    assert len(dataset.labels) == 17 and len(fingerprint(dataset)) == 33
    with open(path, "wb") as file:
        file.write(content[:50])
    with pytest.raises(InputError, match=r"cat/caf\\udce9.png cannot be read") as caught:
        check_whole(load(f"folder:{root}"), np.arange(17))
    str(caught.value).encode()


def test_damage_is_found_before_a_run_with_the_names_of_some_files_and_the_number_of_all(root):
    jpeg = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(jpeg, "JPEG")
    for i in range(5):
        (root / "cat" / f"{i:02}.png").write_bytes(jpeg.getvalue()[: -20 - i])
    for call in (
        lambda: open_stream(f"folder:{root}", 4, 0),
        lambda: check_whole(load(f"folder:{root}"), np.arange(16)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        said = str(caught.value)
        assert said.startswith(f"image {root}/cat/00.png cannot be read (image file is truncated")
        assert f"in all 5 of the 16 rows of folder:{root} cannot be read" in said and said.endswith(", ...")
    check_whole(load(f"folder:{root}"), np.arange(5, 16))


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
