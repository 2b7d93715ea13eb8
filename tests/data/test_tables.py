"""Tables of texts, of images and of paths of images: which columns are taken, and what is refused by file and line."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from jtransfer.data import arrow
from jtransfer.data.damage import check_whole
from jtransfer.data.sources import fingerprint, load, open_pairs
from jtransfer.errors import InputError

WORDS = ["good", "bad, really", 'a "film"', "two\nlines", "plot", "very", "not", "the", "was", "ü"]
LABELS = ["yes", "no"] * 5
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


def save(path, columns, ending=".csv"):
    """A table of some columns, lists by name, in the format of an ending; and its name as data."""
    path = path.with_suffix(ending)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow.parquet")
        pyarrow.write_table(arrow._library("test").table(columns), path, row_group_size=3)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*columns], delimiter="\t" if ending == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return f"table:{path}"


def pictures(directory, count=10):
    """Image files, and their paths from the directory above."""
    directory.mkdir()
    names = [f"{directory.name}/{i}.png" for i in range(count)]
    for name, pixels in zip(names, PIXELS, strict=False):
        Image.fromarray(pixels).save(directory.parent / name)
    return names


def refusal(name, reads=("classes", "labels"), opened=load):
    with pytest.raises(InputError) as caught:
        check_whole(opened(name, reads=reads), np.arange(3))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ENDINGS = [".csv", ".tsv", ".jsonl", ".parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts_and_their_classes_are_the_same_from_every_format(tmp_path, ending):
    data = load(save(tmp_path / "own", {"id": list(range(10)), "text": WORDS, "label": LABELS}, ending))
    assert (data.kind, data.classes, data.targets) == ("text", ("no", "yes"), "classes")
    assert data.labels.tolist() == [1, 0] * 5 and data.labels.dtype == np.int32
    assert data.inputs[:] == WORDS and data.inputs[[3, 1]] == [WORDS[3], WORDS[1]]
    assert np.bincount(data.labels[data.test]).tolist() == [1, 1], "a fifth of each class is held out"
    assert sorted([*data.pool, *data.test]) == list(range(10))


@pytest.mark.parametrize("ending", ENDINGS)
def test_paths_of_images_start_from_the_table_and_are_read_when_their_rows_are(tmp_path, ending):
    names = pictures(tmp_path / "in")
    name = save(tmp_path / "own", {"photo": names, "label": [0, 1] * 5}, ending)
    data = load(name)
    assert data.kind == "image" and data.classes == ("0", "1")
    np.testing.assert_array_equal(data.inputs[[7, 2]], PIXELS[[7, 2]])
    before = fingerprint(data)
    Image.fromarray(PIXELS[0]).save(tmp_path / names[3])
    assert fingerprint(load(name)) != before
    (tmp_path / names[3]).write_bytes((tmp_path / names[3]).read_bytes()[:40])
    assert f"{names[3]} ({tmp_path / 'own'}{ending}: " in load(name).inputs.damaged(np.arange(10))[3]


@pytest.mark.parametrize("as_struct", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_bytes_of_images_in_parquet_are_images(tmp_path, png, as_struct, kept, monkeypatch):
    monkeypatch.setattr(arrow, "KEPT", arrow.KEPT if kept else 0)
    files = [png(pixels).getvalue() for pixels in PIXELS]
    column = [{"bytes": file, "path": None} for file in files] if as_struct else files
    data = load(save(tmp_path / "own", {"image": column, "label": LABELS}, ".parquet"))
    np.testing.assert_array_equal(data.inputs[[9, 0, 4]], PIXELS[[9, 0, 4]])
    assert data.inputs.damaged(np.arange(10)) == {}


def test_options_choose_columns_and_a_file_for_testing(tmp_path):
    columns = {"text": WORDS, "b": WORDS[::-1], "kind": LABELS, "score": [f"{i}.5" for i in range(10)]}
    name, other = save(tmp_path / "own", columns), save(tmp_path / "more", {k: v[:4] for k, v in columns.items()})
    data = load(f"{name}?input=text+b&label=kind&test={other[6:]}")
    assert data.inputs[[1]] == [(WORDS[1], WORDS[8])]
    assert (data.pool.tolist(), data.test.tolist()) == ([*range(10)], [10, 11, 12, 13])
    assert data.inputs[[11]] == data.inputs[[1]] and data.labels.tolist() == [1, 0] * 7
    values = load(f"{name}?label=score", reads=("values",))
    assert values.targets == "values" and values.labels[:2].tolist() == [0.5, 1.5]
    assert load(f"{name}?label=", reads=("texts",)).labels.shape == (10, 0)
    assert "score has numbers as labels; expected one class a row" in refusal(f"{name}?label=score")
    assert "share rows" in refusal(f"{name}?label=kind&test={name[6:]}")


def test_the_files_of_a_directory_are_splits_by_their_names(tmp_path):
    for part, rows in (
        ("train-0", slice(0, 4)),
        ("train-1", slice(4, 6)),
        ("dev", slice(6, 8)),
        ("test", slice(8, 10)),
    ):
        save(tmp_path / part, {"text": WORDS[rows], "label": LABELS[rows]}, ".tsv")
    data = load(f"table:{tmp_path}")
    assert data.inputs[:] == [*WORDS[:6], *WORDS[8:]] and data.test.tolist() == [6, 7]
    assert load(f"table:{tmp_path}?test=validation").inputs[6:] == WORDS[6:8]
    assert "there is no split 'tset'; choose with ?test=SPLIT; did you mean 'test'?" in refusal(
        f"table:{tmp_path}?test=tset"
    )


def test_captions_describe_images(tmp_path):
    columns = {
        "image": pictures(tmp_path / "in"),
        "caption": WORDS,
        "more": [[w, "x"] for w in WORDS],
        "kind": LABELS,
        "n": [*range(10)],
    }
    name = save(tmp_path / "own", columns, ".jsonl")
    batch = next(open_pairs(name, 10, 0).batches(0))[0]
    assert {*batch["texts"]} <= {*WORDS} and len(batch["images"][np.arange(2)]) == 2
    data = load(f"{name}?label=kind&caption=caption+more")
    assert data.captions[[1]] == [["bad, really", "bad, really", "x"]]
    assert "choose with ?caption=COLUMN" in refusal(f"{name}?label=kind&caption=n")


def test_the_fingerprint_follows_the_file_and_the_choice_of_columns(tmp_path):
    columns = {"text": WORDS, "b": WORDS[::-1], "label": LABELS}
    base = fingerprint(load(save(tmp_path / "own", columns)))
    assert fingerprint(load(f"table:{tmp_path}/own.csv?input=b")) != base
    assert fingerprint(load(save(tmp_path / "moved", columns))) == base
    assert fingerprint(load(save(tmp_path / "own", columns | {"text": [*WORDS[:9], "u"]}))) != base


def test_numbers_become_classes_in_their_order_and_codes_stay_names(tmp_path):
    labels = ["10", "9"] * 5
    assert load(save(tmp_path / "own", {"text": WORDS, "label": labels})).classes == ("9", "10")
    for codes in (["07", "7"], ["1234567890123456789012", "1234567890123456789013"]):
        assert load(save(tmp_path / "own", {"text": WORDS, "label": codes * 5})).classes == tuple(codes)


CSV = "text,label\ngood,yes\nbad,no\nvery good,yes\nvery bad,no\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "own.csv: there are no rows in it"),
        ("text,label\n", "own.csv: there are no rows in it"),
        ("text,lable\na,x\nb,y\n", "there are text (text), lable (text); choose with ?label=COLUMN"),
        (
            CSV + "one,two,three\n",
            "own.csv: line 6 cannot be read (3 columns, expected 2, as line 1 has names",
        ),
        (CSV + '\n\n"a\nb"\n', "own.csv: line 8 cannot be read (1 column, expected 2"),
        (CSV + '"a,yes\n', "own.csv: line 6 cannot be read (unexpected end of data)"),
        (CSV + "fine, \n", "own.csv: line 6: 'label' is blank; leave out rows without a label"),
        ("text,label\na,x\nb,x\n", "'label' hold only class x; at least two classes are expected"),
        ("text,text,label\na,b,x\n", "own.csv: line 1 names the column 'text' twice"),
        ("a,b,c,label\nx,y,z,w\n", "expected one image, one text or two texts as input, there are a (text), b (text)"),
        (b"text,label\ngood,yes\nf\xfcnf,no\n", r"own.csv: line 3 holds b'f\xfcnf,no\n', which is no UTF-8"),
        ("text,label\nnone.png,x\nb,y\n" + "a,x\nb,y\n", "own.csv: line 2: 'text': "),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused_by_line(tmp_path, content, said):
    (tmp_path / "own.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refusal(f"table:{tmp_path}/own.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "label": 0}\n{"text": "b"\n', "own.jsonl: line 2 cannot be read (Expecting"),
        ('{"text": "a", "label": 0}\n\n[1]\n', "own.jsonl: line 3 cannot be read (list, expected a JSON object)"),
        ('{"text": "a", "label": 0}\n{"text": "b"}\n', "own.jsonl: line 2: 'label' is blank"),
        ('{"text": "a", "label": 0}\n{"text": "b", "label": "x"}\n', "line 2: 'label' is 'x'; expected a number"),
        ('{"text": "a", "label": 0}\n{"text": "b", "label": [1]}\n', "line 2: 'label' is [1]; expected a class or a"),
        ('{"text": "a", "label": 0}\n{"text": 5, "label": 1}\n' * 3, "line 2: 'text' is 5; expected a text"),
    ],
)
def test_json_lines_that_cannot_be_used_are_refused_by_line(tmp_path, content, said):
    (tmp_path / "own.jsonl").write_text(content)
    assert said in refusal(f"table:{tmp_path}/own.jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table:", "table:: no such file; expected table:FILE"),
        ("table:{}/none.csv", "none.csv: no such file"),
        ("table:{}/own.xlsx", "own.xlsx: expected a table, which ends in .csv or .tsv or"),
        ("table:{}", "has no table whose name begins with 'train'"),
        ("table:{}/own.csv?inptu=text", "unknown option 'inptu'; did you mean 'input'?"),
        ("table:{}/own.csv?input=", "option 'input' has no value"),
        ("table:{}/own.csv?input=text&input=text", "option 'input' stands there twice"),
        ("table:{}/own.csv?input=txt", "there is no column 'txt' in"),
        ("table:{}/own.csv?label=lable", "did you mean 'label'?"),
        ("table:{}/own.csv?train=x", "option 'train' chooses files of a directory"),
        ("table:{}/own.csv?test={}/none.csv", "none.csv: no such file"),
        ("table:{}/own.csv?test={}/other.csv", "other.csv: there is no column 'label' in"),
        ("table:{}/own.csv?test={}/bird.csv", "'label of {}/bird.csv' row 0 is 'bird'; no row of the others is"),
        ("table:{}/own.csv?input=text&caption=text", "captions describe images, and the input is 'text' (text)"),
    ],
)
def test_names_options_and_columns_that_are_not_there_are_refused(tmp_path, name, said):
    (tmp_path / "own.csv").write_text(CSV)
    (tmp_path / "other.csv").write_text("text\na\n")
    (tmp_path / "bird.csv").write_text("text,label\na,bird\n")
    assert said.replace("{}", str(tmp_path)) in refusal(name.replace("{}", str(tmp_path)))


@pytest.mark.parametrize("path", ["../out.png", "/etc/hostname", "gs://bucket/x.png", "none.png", "link.png", " ", "."])
def test_paths_of_images_that_lead_out_or_nowhere_are_refused_by_line(tmp_path, path):
    (tmp_path / "in").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "out.png")
    Image.fromarray(PIXELS[0]).save(tmp_path / "in" / "own.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    name = save(tmp_path / "in" / "own", {"image": ["own.png", path, "own.png", "own.png"], "label": [0, 1, 0, 1]})
    said = refusal(name)
    assert said.startswith(f"{tmp_path}/in/own.csv: ") and "'image'" in said
    assert path == "." or "line 3: 'image'" in said


def test_a_parquet_file_that_is_cut_off_and_rows_without_an_image_are_refused(tmp_path, png):
    file = png(PIXELS[0]).getvalue()
    name = save(tmp_path / "own", {"image": [file, None, file, file], "label": [0, 1, 0, 1]}, ".parquet")
    assert "own.parquet: row 1: 'image' is None; expected the bytes of an image" in refusal(name)
    path = tmp_path / "own.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(name).startswith(f"{path} cannot be read, is damaged or cut off (")
    path.write_bytes(b"")
    assert refusal(name).startswith(f"{path} cannot be read, is damaged or cut off (")


def test_without_pyarrow_the_command_that_installs_it_is_said(tmp_path, monkeypatch):
    name = save(tmp_path / "own", {"text": WORDS, "label": LABELS}, ".parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(name).endswith("install it: pip install 'jtransfer[tables]'")
