"""Damaged rows: left out of training and counted up to a share, then an error that names them."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jtransfer.data.sources import open_pairs, open_stream
from jtransfer.errors import InputError

COUNT = 20


def picture(number):
    """A JPEG file of one grey, which tells its row."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * number + 5,) * 3).save(content, "JPEG", quality=95)
    return content.getvalue()


def row_of(image):
    return round((float(np.asarray(image).mean()) - 5) / 10)


@pytest.fixture
def folder(tmp_path):
    """20 images in two classes, of which rows 3 and 14 of the training are cut off."""
    for split, count in (("train", COUNT), ("test", 2)):
        for number in range(count):
            path = tmp_path / split / ("a" if number < count / 2 else "b") / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = picture(number)
            path.write_bytes(content[: len(content) // 2] if split == "train" and number in (3, 14) else content)
    return tmp_path


@pytest.fixture
def table(tmp_path):
    """20 rows with names of classes beside their numbers; two labels are none of the two classes."""
    lines = [{"text": f"text {i}", "label": i % 2} for i in range(COUNT)]
    lines[5]["label"], lines[8]["label"] = -3, -1
    for name, own in (("train", lines), ("test", lines[:4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line | {"split": name}) + "\n" for line in own))
    return tmp_path


@pytest.fixture
def pairs(tmp_path):
    """A tar file of 20 images and their captions; the captions of samples 2 and 6 are blank."""
    with tarfile.open(tmp_path / "pairs.tar", "w") as file:
        for i in range(COUNT):
            caption = "  " if i in (2, 6) else f"caption {i}"
            for suffix, content in (("jpg", picture(i)), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{suffix}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return tmp_path / "pairs.tar"


def taken(stream, count, cursor=0):
    found = []
    for item in stream.batches(cursor):
        found.append(item)
        if len(found) == count:
            return found


def rows_of(batches, key="inputs"):
    return [row_of(image) for batch, _ in batches for image in batch[key][np.arange(len(batch[key]))]]


def test_truncated_images_are_in_no_epoch_and_every_other_row_is_in_each_once(folder, caplog):
    stream = open_stream(f"folder:{folder}", 6, 0, damaged=0.1)
    assert stream.damaged == 2 and len(stream.pool[1]) == 18
    assert "03.jpg" in caplog.text and "14.jpg" in caplog.text and "2 of the 20 rows" in caplog.text
    epoch = rows_of(taken(stream, 3))
    assert sorted(epoch) == sorted({*range(COUNT)} - {3, 14})


def test_batches_after_a_cursor_and_of_parts_of_a_batch_are_those_of_the_whole(folder):
    whole = taken(open_stream(f"folder:{folder}", 6, 0, damaged=0.1), 5)
    later = taken(open_stream(f"folder:{folder}", 6, 0, damaged=0.1), 2, cursor=whole[2][1])
    assert rows_of(later) == rows_of(whole[3:])
    halves = [taken(open_stream(f"folder:{folder}", 6, 0, np.arange(3) + i, damaged=0.1), 5) for i in (0, 3)]
    for (batch, _), *parts in zip(whole, *halves, strict=True):
        assert rows_of([(batch, 0)]) == rows_of(parts)


@pytest.mark.parametrize("share", [0.0, 0.09])
def test_more_than_the_share_is_an_error_that_names_them(folder, share):
    with pytest.raises(InputError, match=r"03\.jpg cannot be read .*2 of the 2[02] rows .*14\.jpg"):
        open_stream(f"folder:{folder}", 6, 0, damaged=share)


def test_an_image_that_is_tested_on_is_never_left_out(folder):
    content = (folder / "test" / "a" / "00.jpg").read_bytes()
    (folder / "test" / "a" / "00.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"test/a/00\.jpg cannot be read"):
        open_stream(f"folder:{folder}", 6, 0, damaged=0.5)


def test_labels_that_are_no_class_are_left_out_with_their_rows(table, caplog):
    stream = open_stream(f"table:{table}", 6, 0, damaged=0.1)
    assert stream.damaged == 2 and stream.classes == ("0", "1")
    texts = [text for batch, _ in taken(stream, 3) for text in batch["inputs"][np.arange(6)]]
    assert sorted(texts) == sorted(f"text {i}" for i in range(COUNT) if i not in (5, 8))
    assert "'label' row 5 is -3" in caplog.text and "'label' row 8 is -1" in caplog.text
    with pytest.raises(InputError, match=r"'label' row 5 is -3; .*2 of the 20 .*config.damaged=0.09 allows 1$"):
        open_stream(f"table:{table}", 6, 0, damaged=0.09)
    with pytest.raises(InputError, match="'label' row 5 is -3"):
        open_stream(f"table:{table}", 6, 0)


def test_what_is_held_out_of_one_file_has_a_class(tmp_path):
    labels = np.arange(COUNT) % 2
    labels[[4, 7]] = 2
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "own.npz", images=images, labels=labels, classes=["even", "odd"])
    stream = open_stream(f"npz:{tmp_path / 'own.npz'}", 2, 0, damaged=0.2)
    assert stream.damaged == 2 and {*stream.held_out[2]} == {*stream.pool[1]} == {0, 1}
    with pytest.raises(InputError, match="'labels' row 4 is 2; expected 0..1"):
        open_stream(f"npz:{tmp_path / 'own.npz'}", 2, 0)


def test_pairs_without_a_caption_are_left_out_and_no_other_comes_twice(pairs, caplog):
    stream = open_pairs(f"tar:{pairs}", 7, 0, damaged=0.2)
    held_out = len(stream.held_out.labels)
    assert stream.damaged == 2 and "the caption of row 2 of tar:" in caplog.text
    left = COUNT - 2 - held_out
    batches = taken(stream, 2)  # an epoch
    rows, texts = rows_of(batches, "images"), [text for batch, _ in batches for text in batch["texts"]]
    assert len({*rows}) == left and not {2, 6} & {*rows}
    assert texts == [f"caption {row}" for row in rows]
    with pytest.raises(InputError, match=r"caption of row 2 of .* is empty; .*; config.damaged leaves out a share$"):
        open_pairs(f"tar:{pairs}", 7, 0)
