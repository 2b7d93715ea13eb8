"""Tar files of images and what stands beside them: samples by key, captions and classes, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest

from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_pairs
from jtransfer.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)


def shard(path, members):
    """A tar file with some members, bytes or texts by name."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def sample(png):
    """`sample(i)`: the members of a sample as img2dataset writes them, and a class."""

    def members(i, key=""):
        key = key or f"{i:09}"
        about = {"url": f"http://here/{i}.jpg", "caption": f"said {i}", "key": key, "width": 5 + i}
        files = {"png": png(PIXELS[i]).getvalue(), "txt": f"thing {i}", "json": json.dumps(about), "cls": str(i % 2)}
        return [(f"{key}.{ending}", content) for ending, content in files.items()]

    return members


@pytest.fixture
def root(tmp_path, sample):
    """Two shards of six samples."""
    for number in range(2):
        shard(tmp_path / "in" / f"{number:05}.tar", [own for i in range(6) for own in sample(number * 6 + i)])
    return tmp_path / "in"


def refusal(name, opened=load):
    with pytest.raises(InputError) as caught:
        data = opened(name)
        check_whole(data, np.arange(len(data.inputs)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(name):
    return open_pairs(name, 2, 0)


@pytest.mark.parametrize("pattern", ["", "/{00000..00001}.tar"])
def test_classes_of_a_directory_and_of_braces_are_read_by_row(root, pattern):
    data = load(f"tar:{root}{pattern}")
    assert (data.kind, data.classes, data.labels.tolist()) == ("image", ("0", "1"), [0, 1] * 6)
    np.testing.assert_array_equal(data.inputs[[11, 0, 7]], PIXELS[[11, 0, 7]])
    assert np.bincount(data.labels[data.test]).tolist() == [1, 1]
    assert len(load(f"tar:{root}/00001.tar").labels) == 6
    held_out = load(f"tar:{root}/00000.tar?test={root}/00001.tar")
    assert held_out.test.tolist() == [*range(6, 12)]


def test_names_of_classes_stand_beside_the_shards_or_in_them(root, sample):
    (root / "classes.txt").write_text("even\nodd\nnone\n")
    assert load(f"tar:{root}").classes == ("even", "odd", "none")
    (root / "classes.txt").write_text("even\n")
    assert "sample '000000001' has the class '1'; expected 0 to 0, which classes.txt has names for" in refusal(
        f"tar:{root}"
    )
    (root / "classes.txt").write_text("a\na\n")
    assert "classes.txt names 'a' twice" in refusal(f"tar:{root}")
    (root / "classes.txt").unlink()
    members = [own for i in range(8) for own in (sample(i)[0], (f"{i:09}.cls", "cat" if i % 3 else "dog"))]
    shard(root / "named" / "0.tar", members)
    assert load(f"tar:{root}/named").classes == ("cat", "dog")


def test_captions_are_the_texts_or_a_key_of_the_json(root):
    assert load(f"tar:{root}?caption=txt").captions[[7, 1]] == [["thing 7"], ["thing 1"]]
    assert load(f"tar:{root}?caption=caption+txt").captions[[3]] == [["said 3", "thing 3"]]
    stream = pairs(f"tar:{root}")
    assert stream.held_out.names == ("thing 10", "thing 11"), "the last rows are held out"
    batch = next(stream.batches(0))[0]
    for image, text in zip(batch["images"][np.arange(2)], batch["texts"], strict=True):
        np.testing.assert_array_equal(image, PIXELS[int(text.removeprefix("thing "))])
    assert load(f"tar:{root}?label=width", reads=("values",)).labels.tolist() == [*np.arange(5.0, 17)]


def test_the_fingerprint_follows_every_byte_and_not_the_place(root, sample, tmp_path):
    base = fingerprint(load(f"tar:{root}"))
    assert fingerprint(load(f"tar:{root.rename(tmp_path / 'moved')}")) == base
    path = tmp_path / "moved" / "00001.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"thing 7")] = ord("T")
    path.write_bytes(content)
    assert fingerprint(load(f"tar:{tmp_path}/moved")) != base


def test_samples_are_known_by_directory_and_key_and_other_members_are_left_out(tmp_path, sample):
    members = [
        (f"./{part}/{i}.{ending}", content)
        for part in "ab"
        for i in range(3)
        for ending, content in (("PNG", sample(i)[0][1]), ("cls", part), ("seg.png", "none"), ("npy", "none"))
    ]
    data = load(f"tar:{shard(tmp_path / 'own.tar', [*members, ('README', 'none')])}")
    assert data.classes == ("a", "b") and data.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_damaged_image_is_named_by_shard_and_key(root, tmp_path, sample):
    broken = [
        (name, content[:30] if name.endswith("2.png") else content) for i in range(6) for name, content in sample(i)
    ]
    data = load(f"tar:{shard(tmp_path / 'own.tar', broken)}")
    (said,) = data.inputs.damaged(np.arange(6)).values()
    assert said.startswith(f"image 'image' of {tmp_path}/own.tar: sample '000000002' cannot be read (")


def without(ending):
    return lambda members: [own for own in members if own[0] != f"000000001.{ending}"]


def with_one(name, content="x"):
    return lambda members: [*members, (name, content)]


def replaced(name, content):
    return lambda members: [(own, content if own == name else before) for own, before in members]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("png"), "own.tar: sample '000000001' has no image; expected one of .bmp, .gif"),
        (without("txt"), "own.tar: sample '000000001' has no .txt, as others have"),
        (without("cls"), "own.tar: sample '000000001' has no .cls, as others have"),
        (with_one("000000001.jpg"), "own.tar: sample '000000001' has two images; expected one"),
        (with_one("000000001.txt"), "own.tar: sample '000000001' has two members .txt; expected one"),
        (with_one("../000000001.txt"), "own.tar: member '../000000001.txt' leads out of it"),
        (with_one("/etc/x.txt"), "own.tar: member '/etc/x.txt' leads out of it"),
        (lambda members: [], "own.tar: there are no rows in it"),
        (replaced("000000001.txt", b"\xff"), "own.tar: sample '000000001' has a .txt that is no UTF-8 (byte 0)"),
        (replaced("000000000.json", "[1]"), "own.tar: sample '000000000' has a .json that cannot be read (list, exp"),
    ],
)
def test_samples_that_are_not_whole_are_refused_by_shard_and_key(tmp_path, sample, change, said):
    path = shard(tmp_path / "own.tar", change([own for i in range(6) for own in sample(i)]))
    with pytest.raises(InputError) as caught:
        check_whole(load(f"tar:{path}?caption=txt"), np.arange(6))
    assert said in str(caught.value)


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)
    assert "own.tar: member '1.png' is a link or no plain file" in refusal(f"tar:{tmp_path}/own.tar")


def test_a_shard_that_is_cut_off_anywhere_damaged_or_packed_is_refused(root):
    path = root / "00001.tar"
    content = path.read_bytes()
    data = [i for i in range(0, len(content), 512) if any(content[i : i + 512])]
    for end in (0, 100, 700, data[-1], data[-1] + 256, data[-1] + 512):
        path.write_bytes(content[:end])
        assert refusal(f"tar:{root}").startswith(f"{path} ")
    header = data[len(data) // 2]
    while content[header + 257 :][:5] != b"ustar":
        header += 512
    path.write_bytes(content[:header] + b"#" * 512 + content[header + 512 :])
    assert refusal(f"tar:{root}") == f"{path} is cut off or damaged at byte {header:,}; expected the end of a tar file"
    with tarfile.open(path, "w:gz"):
        pass
    assert "00001.tar is packed, and has no access by row" in refusal(f"tar:{root}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tar:", "tar:: no such file; expected tar:FILE"),
        ("tar:{}/none.tar", "none.tar: no such file"),
        ("tar:{}/{00000..00002}.tar", "00002.tar: no such file"),
        ("tar:{}/{3..1}.tar", "'{3..1}' stands for no files; expected {FIRST..LAST}"),
        ("tar:{}/empty", "empty holds no files that end in .tar"),
        ("tar:{}?train=x", "unknown option 'train'; "),
        ("tar:{}?caption=alt", "there is no column 'alt' in "),
        ("tar:{}?label=txt", "no class has two rows"),
        ("tar:{}?test={}", "share rows"),
        ("{}/00000.tar", "did you mean 'tar:{}/00000.tar'?"),
    ],
)
def test_names_and_options_that_are_not_there_are_refused(root, name, said):
    (root / "empty").mkdir()
    assert said.replace("{}", str(root)) in refusal(name.replace("{}", str(root)))
