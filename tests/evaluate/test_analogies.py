"""Analogies by 3CosAdd and 3CosMul, how alike words are, and neighbours: as gensim answers, and by hand."""

import json

import numpy as np
import pytest

from jtransfer import cli
from jtransfer.checkpoints import vectors
from jtransfer.data import questions
from jtransfer.errors import InputError
from jtransfer.evaluate import analogies as measure

SQUARE = {"man": (1, 0), "king": (1, 1), "woman": (-1, 0), "Queen": (-1, 1), "throne": (0, 1)}
FILE = ": family\nman king woman queen\nking man queen woman\nman king woman prince\n: none\na b c d\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(FILE)
    return str(path)


def test_a_question_is_answered_by_another_word_and_one_with_an_unknown_word_is_not_asked(file):
    asked = questions.analogies(file)
    assert asked.names == ("family", "none") and asked.categories.tolist() == [0, 0, 0, 1]
    vectors = np.array(list(SQUARE.values()), float)
    for method, second in {"3CosAdd": True, "3CosMul": False}.items():  # whose product takes throne, as man is far
        found = measure.analogies(list(SQUARE), vectors, asked.words, method)
        assert found.asked.tolist() == [True, True, False, False]
        assert found.right.tolist() == [True, second, False, False]
        assert not measure.analogies(list(SQUARE), vectors, asked.words, method, restrict=3).asked.any()


def test_gensim_answers_alike(tmp_path):
    models = pytest.importorskip("gensim.models", reason="gensim is not installed")
    rng, names = np.random.default_rng(0), [f"w{i}" for i in range(60)]
    peer = models.KeyedVectors(5)
    peer.add_vectors(names, rng.normal(size=(60, 5)).astype(np.float32))
    four = [tuple(rng.choice(names, 4, replace=False)) for _ in range(300)]
    add = [peer.most_similar(positive=[b, c], negative=[a], topn=1)[0][0] for a, b, c, _ in four]
    answered = [(*own[:3], d) if i % 2 else own for i, (own, d) in enumerate(zip(four, add, strict=True))]
    (tmp_path / "q.txt").write_text(": all\n" + "\n".join(map(" ".join, answered)))
    score, _ = peer.evaluate_word_analogies(str(tmp_path / "q.txt"))
    found = measure.analogies(names, peer.vectors, answered)
    np.testing.assert_allclose(found.right[found.asked].mean(), score)
    # Its evaluation takes another function and does not use it, so that this one is asked by itself.
    multiply = [peer.most_similar_cosmul(positive=[b, c], negative=[a], topn=1)[0][0] for a, b, c, _ in four]
    assert multiply != add
    answered = [(*own[:3], d) for own, d in zip(four, multiply, strict=True)]
    assert measure.analogies(names, peer.vectors, answered, "3CosMul").right.all()
    theirs = peer.most_similar(positive=["w1", "w2"], negative=["w3"], topn=5)
    ours = measure.neighbours(names, peer.vectors, ["w1", "w2"], ["w3"], 5)
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    np.testing.assert_allclose([x for _, x in ours], [x for _, x in theirs], rtol=1e-5)


def test_protocols_of_the_table_alone_need_no_data(file, tmp_path, capsys):
    vectors.write(tmp_path / "own.txt", tuple(SQUARE), np.array(list(SQUARE.values()), np.float32), "glove")
    keys = f"backbone={tmp_path / 'own.txt'},protocols=analogies(questions='{file}')+neighbours(k=1)"
    command = ["evaluate", f"--config=configs/evaluate.py:{keys}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["protocol"].partition("(")[0] for row in rows] == ["analogies", "neighbours"]
    assert rows[0]["metrics"] == {"accuracy": 1.0, "asked": 2, "unknown": 2}
    assert [*rows[1]["metrics"]] == ["Queen"]
    capsys.readouterr()
    assert cli.main([*command[:2], "--config.backbone=glyphs-vit", f"--workdir={tmp_path / 'other'}"]) == 2
    assert "backbone 'glyphs-vit' has no word vectors" in capsys.readouterr().err
    assert cli.main([*command[:2], "--config.protocols=neighbours(plus=())", f"--workdir={tmp_path / 'other'}"]) == 2
    assert "plus: expected a list of at least one item" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_neighbours_of_a_word_that_is_not_known_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="'kin' is not in the vocabulary; did you mean 'king'"):
        measure.neighbours(list(SQUARE), np.eye(5), ["kin"])


def test_pairs_of_words_are_as_alike_as_their_cosine(tmp_path):
    (tmp_path / "pairs.tsv").write_text("# one\nman\tking\t7\nman\twoman\t1\nman\tghost\t2\n")
    asked = questions.alike(str(tmp_path / "pairs.tsv"))
    found = measure.cosines(list(SQUARE), np.array(list(SQUARE.values()), float), asked.pairs)
    np.testing.assert_allclose(found, [np.sqrt(0.5), -1, np.nan], rtol=1e-6)
    assert asked.scores.tolist() == [7, 1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [(": a\none two three\n", "line 2: 3 words"), (": a\n", "there is no question"), ("\udcff", "no UTF-8")],
)
def test_a_damaged_file_of_questions_is_told_in_one_line(tmp_path, content, said):
    (tmp_path / "q.txt").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said):
        questions.analogies(str(tmp_path / "q.txt"))
