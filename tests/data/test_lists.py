"""Several labels a row, in a column of lists: classes by name or number, and numbers to predict."""

import json

import numpy as np
import pytest

from jtransfer.data.sources import load, open_stream
from jtransfer.errors import InputError

LABELS = [["red", "blue"], [], ["red"], ["green", "red"], ["blue"], ["green"]]
COLUMNS = [[1, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]]
"""Of blue, green and red, in the order of the alphabet."""


def save(path, labels):
    """A table of JSON lines, and its name as data."""
    lines = (json.dumps({"text": f"text {i}", "labels": own}) for i, own in enumerate(labels))
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"table:{path}"


def test_names_become_a_column_of_each_and_a_row_may_have_none(tmp_path):
    data = load(save(tmp_path / "own.jsonl", LABELS))
    assert (data.targets, data.classes) == ("labels", ("blue", "green", "red"))
    np.testing.assert_array_equal(data.labels, COLUMNS)
    assert len(data.test) == 1 and data.labels.dtype == np.int32


def test_numbers_are_columns_by_size_and_floats_are_values(tmp_path):
    data = load(save(tmp_path / "own.jsonl", [[10, 9], [9], [], [700, 9]]))
    assert data.classes == ("9", "10", "700") and data.labels.sum(0).tolist() == [3, 1, 1]
    boxes = np.arange(8).reshape(4, 2) / 4
    data = load(save(tmp_path / "own.jsonl", boxes.tolist()), reads=("values",))
    assert data.targets == "values"
    np.testing.assert_array_equal(data.labels, boxes)


@pytest.mark.parametrize("feature", [{"feature": {"names": ["a", "b", "c"]}}, [{"names": ["a", "b", "c"]}]])
def test_lists_of_class_labels_keep_their_names(tmp_path, feature):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": list("wxyz"), "labels": [[0, 2], [2], [], [0]]})
    with pyarrow.OSFile(f"{tmp_path}/a.arrow", "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": {"labels": feature}}))
    data = load(f"hf:{tmp_path}")
    assert data.classes == ("a", "b", "c") and data.labels.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_a_label_that_is_no_class_is_left_out_with_its_row_and_never_tested_on(tmp_path):
    for wrong in range(6):
        labels = [*LABELS[:wrong], ["red", " "], *LABELS[wrong + 1 :]]
        name = save(tmp_path / "own.jsonl", labels)
        with pytest.raises(InputError, match=rf"'labels' row {wrong} holds ' '; leave out rows without a label$"):
            open_stream(name, 2, 0)
        stream = open_stream(name, 2, 0, damaged=0.2)
        assert stream.damaged == 1 and len(stream.pool[1]) + len(stream.held_out[2]) == 5


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a"], "a"], "line 2: 'labels' is 'a'; expected a list, empty for a row of no class"),
        ([["a"], None], "line 2: 'labels' is None; expected a list"),
        ([["a"], [["a"]]], "line 2: 'labels' holds ['a']; expected classes or numbers"),
        ([["a"], ["b", "b"]], "'labels' row 1 is ['b', 'b']; expected each class once at most"),
        ([["a"], [1]], "'labels' holds numbers and texts; expected numbers of classes, or names"),
        ([[0], [-1]], "'labels' row 1 holds -1; leave out rows without a label"),
        ([[0.5], [0.5, 1.0]], "line 2: 'labels' is [0.5, 1.0]; expected 1 numbers in each row"),
        ([[], []], "'labels' holds no class; expected one at least"),
    ],
)
def test_what_is_no_list_of_classes_is_refused_by_line_or_row(tmp_path, labels, said):
    with pytest.raises(InputError) as caught:
        load(save(tmp_path / "own.jsonl", labels))
    assert said in str(caught.value)


def test_a_label_of_the_test_rows_that_no_other_row_has_is_refused(tmp_path):
    save(tmp_path / "test.jsonl", [["red"], ["yellow"]])
    with pytest.raises(InputError, match="'labels of .*test.jsonl' row 1 holds 'yellow'; no row of the others is; "):
        load(f"{save(tmp_path / 'own.jsonl', LABELS)}?test={tmp_path}/test.jsonl")
