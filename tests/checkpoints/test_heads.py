"""A head of any kind is data in the `config.json` of our own layout: it comes back as it was, and leaves for others."""

import json

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints
from jtransfer.checkpoints import to_huggingface
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import GPT2, Bert, BertConfig, GPT2Config, Head, Headed, ViT, ViTConfig, complete
from jtransfer.tree import Tree

WORDS = 23
SIZES = {"vocabulary": WORDS, "positions": 12, "width": 16, "depth": 1, "heads": 2, "hidden": 24}
BERT = Bert(BertConfig(**SIZES, pooler=False, epsilon=1e-3, activation="relu"))
MEAN = Bert(BertConfig(**SIZES, pool="mean"))
POOLED = Bert(BertConfig(**SIZES))
GPT = GPT2(GPT2Config(**SIZES, eos_tokens=(1,)))
VIT = ViT(ViTConfig(image=(4, 4), patch=2, width=8, depth=1, heads=2, hidden=12))
EVERY = {"reads": "last_hidden_state"}
MASKED = Head(WORDS, **EVERY, hidden="relu", norm=1e-3, tied=True)
HEADS = {
    "masked_lm": (BERT, MASKED, (), "BertForMaskedLM"),
    "causal_lm": (GPT, Head(WORDS, **EVERY, tied=True, bias=False), (), "GPT2LMHeadModel"),
    "token": (BERT, Head(3, **EVERY), ("O", "B", "I"), "BertForTokenClassification"),
    "token beside a pooling": (MEAN, Head(3, **EVERY), ("O", "B", "I"), "BertForTokenClassification"),
    "span": (BERT, Head(2, **EVERY, span=True), (), "BertForQuestionAnswering"),
    "classification": (POOLED, Head(3), ("a", "b", "c"), "BertForSequenceClassification"),
}


def random_tree(model, head) -> Tree:
    """Every leaf of a model and its head, random."""
    whole = Headed(model, head, "head")
    shapes = jax.eval_shape(lambda: complete(whole, jax.random.key(0), {}, model.config.inputs))
    rng = np.random.default_rng(0)
    return {path: rng.normal(0, 0.3, x.shape).astype(np.float32) for path, x in shapes.items()}


def inputs():
    rng = np.random.default_rng(1)
    return {"input_ids": rng.integers(1, WORDS, (2, 7)), "attention_mask": np.ones((2, 7), int)}


@pytest.fixture
def saved(tmp_path):
    """`saved(kind)`: the directory, the model, the tree and the head."""

    def save(kind):
        model, head, classes, _ = HEADS[kind]
        tree = random_tree(model, head)
        checkpoints.save(tmp_path / "own", model, tree, classes, head=head)
        return tmp_path / "own", model, tree, head

    return save


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_was_saved_comes_back_with_outputs_equal_to_the_bit(saved, kind):
    directory, model, tree, head = saved(kind)
    backbone = jt.load(str(directory))
    assert backbone.head == head and head.kind == kind.partition(" ")[0] and backbone.classes == HEADS[kind][2]
    renamed = {path.replace("head/", "source_head/") if path.startswith("head/") else path for path in tree}
    assert backbone.params.keys() == renamed
    before = checkpoints.Backbone("mine", model, {p.replace("head/", "source_head/"): x for p, x in tree.items()})
    before = checkpoints.backbone.run(before, Headed(model, head), before.params, inputs(), {})
    for name, output in backbone(inputs()).items():
        np.testing.assert_array_equal(output, before[name], err_msg=name)


@pytest.mark.parametrize("kind", HEADS)
def test_a_loaded_backbone_is_saved_with_its_head_as_it_is(saved, kind, tmp_path):
    backbone = jt.load(str(saved(kind)[0]))
    checkpoints.save(tmp_path / "again", backbone.model, backbone.params, backbone.classes, head=backbone.head)
    assert jt.load(str(tmp_path / "again")).fingerprint == backbone.fingerprint


@pytest.mark.parametrize("ends", [(0,), (), (3, 0)])
def test_a_language_model_that_ends_its_texts_with_any_token_or_none_comes_back(ends, tmp_path):
    model, head = GPT2(GPT2Config(**SIZES, eos_tokens=ends)), HEADS["causal_lm"][1]
    checkpoints.save(tmp_path, model, random_tree(model, head), head=head)
    assert jt.load(str(tmp_path)).config == model.config


def test_only_what_differs_from_a_plain_head_is_written_and_a_plain_one_not_at_all(saved):
    values = json.loads((saved("token")[0] / "config.json").read_text())
    assert values["classes"] == ["O", "B", "I"] and values["head"] == {"reads": "last_hidden_state"}
    values = json.loads((saved("masked_lm")[0] / "config.json").read_text())
    expected = {"classes": WORDS, "reads": "last_hidden_state", "hidden": "relu", "norm": 1e-3, "tied": True}
    assert values["classes"] == [] and values["head"] == expected
    assert "head" not in json.loads((saved("classification")[0] / "config.json").read_text())


@pytest.mark.parametrize("kind", HEADS)
def test_it_leaves_for_the_class_of_transformers_that_computes_it(saved, kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone = jt.load(str(saved(kind)[0]))
    to_huggingface(tmp_path / "theirs", backbone)
    name = json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"][0]
    assert name == HEADS[kind][3]
    peer, told = getattr(transformers, name).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        theirs = peer.eval()(**{key: torch.from_numpy(x) for key, x in inputs().items()})
    ours = backbone(inputs())
    for output in ("start_logits", "end_logits") if kind == "span" else ("logits",):
        np.testing.assert_allclose(ours[output], theirs[output], atol=1e-5, err_msg=output)
    assert jt.load(str(tmp_path / "theirs")).head == backbone.head


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2", "vit", "resnet", "convnext"])
def test_a_kind_is_what_the_families_of_hugging_face_call_it(family):
    for kind in {*FAMILIES[family].heads.values(), ""} - {""}:
        found = FAMILIES[family].head({}, kind, 5).kind
        assert found == {"sequence": "classification"}.get(kind, kind)


def test_a_kind_can_be_asked_for_left_out_or_replaced_by_a_head_for_classes(saved):
    directory = str(saved("masked_lm")[0])
    assert jt.load(directory, head="masked_lm").head == MASKED
    bare = jt.load(directory, head="")
    assert bare.head is None and not any("head" in path for path in bare.params)
    fresh = jt.load(directory, head="classification", classes=4)
    assert fresh.head == Head(4) and fresh.fresh == ("source_head/bias", "source_head/kernel")
    with pytest.raises(InputError, match="no head 'token'"):
        jt.load(directory, head="token")
    with pytest.raises(InputError, match="classes=3, but the head 'masked_lm' has none.*head='classification'"):
        jt.load(directory, classes=3)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("linear", "head is 'linear'; expected an object"),
        ({"classes": 3, "raeds": "first"}, "head has no option 'raeds'; did you mean 'reads'"),
        ({"classes": 3, "reads": "nothing"}, "head: unknown reads 'nothing'"),
        ({"classes": 3, "hidden": "glue"}, "head: unknown hidden 'glue'; did you mean 'gelu'"),
        ({"classes": 3, "norm": -1.0}, "norm is -1.0; expected"),
        ({"reads": "first"}, "head: classes is None; expected a number up to 1,000,000"),
        ({"classes": 10**9}, "head: classes is 1000000000; expected a number up to 1,000,000"),
        ({"classes": 5, "tied": True}, "tied to the table of words and has 5 outputs; the model has 23 words"),
    ],
)
def test_a_head_that_cannot_be_is_refused_in_one_line(saved, head, said):
    directory = saved("masked_lm")[0]
    values = json.loads((directory / "config.json").read_text()) | {"head": head}
    (directory / "jtransfer.json").unlink()
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=said) as refused:
        jt.load(str(directory))
    assert "\n" not in str(refused.value) and "config.json" in str(refused.value)


def test_names_for_another_number_of_outputs_are_refused_before_anything_is_written(tmp_path):
    tree = random_tree(VIT, Head(3, reads="patches"))
    with pytest.raises(InputError, match="a head with 3 outputs cannot have 2 names"):
        checkpoints.save(tmp_path / "own", VIT, tree, ("a", "b"), head=Head(3, reads="patches"))
    assert not (tmp_path / "own").exists()
