"""Adapters of PEFT on a base whose output kernel is its table of words, and heads that read what a base lacks."""

import numpy as np
import pytest

import jtransfer as jt
from jtransfer.checkpoints import to_huggingface, write_adapter
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

IDS = np.array([[5, 6, 7, 8]])
CLOSE = {"atol": 2e-5, "rtol": 0}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**BLOCKS, "vocab_size": 30, "max_position_embeddings": 16}
PEERS = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 30, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1}
        | {"eos_token_id": 2},
        "c_attn",
    ),
    "bert": ("BertForMaskedLM", TEXT, "query"),
    "roberta": ("RobertaForMaskedLM", TEXT, "query"),
    "electra": ("ElectraForMaskedLM", {**TEXT, "embedding_size": 16}, "query"),
}


def randomised(peer, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in peer.named_parameters():
            x.normal_(1.0 if "norm" in name.lower() or "ln_" in name else 0.0, 0.3)
    return peer.eval()


def base_of(family, directory):
    name, options, _ = PEERS[family]
    kind = getattr(transformers, name)
    randomised(kind(kind.config_class(**options))).save_pretrained(directory)
    return kind


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits.numpy()


def adapt(peer, target, directory, seed=1, **options):
    """PEFT's model with everything that it trains moved at random, saved."""
    options = {"init_lora_weights": False, "target_modules": target} | options
    model = peft.get_peft_model(peer, peft.LoraConfig(**options)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for x in model.parameters():
            if x.requires_grad:
                x.add_(0.5 * torch.randn_like(x))
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize(
    ("family", "saved"),
    [
        ("gpt2", ["wte"]),
        ("gpt2", ["lm_head"]),
        ("gpt2", ["wte", "lm_head"]),
        ("bert", ["word_embeddings"]),
        ("bert", ["cls"]),
        ("roberta", ["lm_head"]),
        ("electra", ["generator_lm_head"]),
    ],
)
def test_a_module_that_is_saved_parts_the_tied_pair_as_in_peft(family, saved, tmp_path):
    kind = base_of(family, tmp_path / "base")
    adapt(kind.from_pretrained(tmp_path / "base"), [PEERS[family][2]], tmp_path / "adapter", modules_to_save=saved)
    again = peft.PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    expected = logits(again)
    ours = jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "adapter"))
    np.testing.assert_allclose(ours({"input_ids": IDS})["logits"], expected, **CLOSE)
    write_adapter(tmp_path / "written", ours)
    back = peft.PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "written").eval()
    np.testing.assert_allclose(logits(back), expected, **CLOSE)
    to_huggingface(tmp_path / "whole", ours)
    np.testing.assert_allclose(logits(kind.from_pretrained(tmp_path / "whole").eval()), expected, **CLOSE)


def test_lora_on_a_tied_output_changes_that_side_alone(tmp_path):
    kind = base_of("gpt2", tmp_path / "base")
    theirs = adapt(kind.from_pretrained(tmp_path / "base"), ["c_attn", "lm_head"], tmp_path / "adapter")
    ours = jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "adapter"))
    np.testing.assert_allclose(ours({"input_ids": IDS})["logits"], logits(theirs), **CLOSE)


@pytest.mark.parametrize("options", [{"ensure_weight_tying": True}, {"trainable_token_indices": [5, 6]}])
def test_other_ways_to_train_a_tied_pair_are_refused_by_name(options, tmp_path):
    kind = base_of("gpt2", tmp_path / "base")
    saved = {} if "trainable_token_indices" in options else {"modules_to_save": ["wte"]}
    adapt(kind.from_pretrained(tmp_path / "base"), ["c_attn"], tmp_path / "adapter", **options, **saved)
    with pytest.raises(InputError, match=f"not supported: {next(iter(options))}"):
        jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "adapter"))


@pytest.fixture(params=["gpt2", "bert"])
def grown(request, tmp_path):
    """A base to which words were added, before and after, and an adapter that carries its embeddings."""
    kind = base_of(request.param, tmp_path / "small")
    peer = kind.from_pretrained(tmp_path / "small")
    peer.resize_token_embeddings(34)
    peer.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(peer, peft.LoraConfig(target_modules=[PEERS[request.param][2]]))
    model = model.eval()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    return kind, model, tmp_path


def test_an_adapter_with_the_embeddings_of_its_base_loads_as_one_without(grown):
    _, model, where = grown
    ours = jt.load_adapter(jt.load(str(where / "base")), str(where / "adapter"))
    assert not any(path.startswith("embeddings/") for path in ours.params)
    np.testing.assert_allclose(ours({"input_ids": IDS})["logits"], logits(model), **CLOSE)


def test_embeddings_of_another_base_replace_both_sides_and_two_tables_are_refused(grown):
    from safetensors.numpy import load_file, save_file

    kind, _, where = grown
    file = where / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tables = [name for name, x in tensors.items() if x.shape[0] == 34 and x.ndim == 2]
    assert len(tables) == 2
    save_file(tensors | {name: tensors[name] + 1 for name in tables}, file)
    again = peft.PeftModel.from_pretrained(kind.from_pretrained(where / "base"), where / "adapter").eval()
    ours = jt.load_adapter(jt.load(str(where / "base")), str(where / "adapter"))
    np.testing.assert_allclose(ours({"input_ids": IDS})["logits"], logits(again), atol=2e-4, rtol=0)
    save_file(tensors | {tables[0]: tensors[tables[0]] + 1}, file)
    with pytest.raises(InputError, match="differ, but the base ties them"):
        jt.load_adapter(jt.load(str(where / "base")), str(where / "adapter"))


def test_an_adapter_of_a_base_that_grew_says_so_where_the_base_did_not(grown):
    *_, where = grown
    with pytest.raises(InputError) as error:
        jt.load_adapter(jt.load(str(where / "small")), str(where / "adapter"))
    assert "has 34 words, and backbone" in str(error.value) and "resize_token_embeddings(34)" in str(error.value)


def test_a_classifier_over_a_pooler_that_the_base_lacks_is_refused(tmp_path):
    base_of("bert", tmp_path / "base")
    peer = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapt(peer, ["query"], tmp_path / "adapter", task_type="SEQ_CLS")
    with pytest.raises(InputError, match="BertForSequenceClassification, whose head reads a pooler.* has none"):
        jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "adapter"))


def test_a_classifier_on_a_sentence_encoder_reads_the_pooler_and_not_the_mean(tmp_path):
    import json

    peer = randomised(transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, num_labels=3)))
    peer.bert.save_pretrained(tmp_path / "base")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "base" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    theirs = adapt(peer, ["query"], tmp_path / "adapter", task_type="SEQ_CLS")
    backbone = jt.load(str(tmp_path / "base"))
    assert backbone.config.pool == "mean"
    ours = jt.load_adapter(backbone, str(tmp_path / "adapter"))
    np.testing.assert_allclose(ours({"input_ids": IDS})["logits"], logits(theirs), **CLOSE)
