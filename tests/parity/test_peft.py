"""Adapters of PEFT in and out: the same outputs, gradients and weights, by whichever names their modules went."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer import methods
from jtransfer.checkpoints import Adapter, write_adapter
from jtransfer.checkpoints.peft_config import COMMON
from jtransfer.checkpoints.peft_formats import FORMATS
from jtransfer.errors import InputError
from jtransfer.methods.method import Intercepted
from jtransfer.models import Head, apply
from jtransfer.tree import FROZEN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLOSE = {"atol": 1e-4, "rtol": 0}
CLASSES, TOKENS, VOCABULARY = 5, 9, 31
BLOCKS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
PEERS = {
    "vit": (
        "ViTForImageClassification",
        {**BLOCKS, "image_size": (24, 16), "patch_size": 8, "qkv_bias": False, "num_labels": CLASSES},
        {
            "target_modules": ["q_proj", "v_proj", "fc1"],
            "rank_pattern": {"fc1": 3, "layers.1.attention.q_proj": 6},
            "alpha_pattern": {r".*layers\.0\.attention.v_proj": 7, "fc1": 5},
            "modules_to_save": ["classifier"],
        },
    ),
    "bert": (
        "BertForSequenceClassification",
        {**BLOCKS, "vocab_size": VOCABULARY, "max_position_embeddings": 12, "num_labels": CLASSES},
        {
            "target_modules": r"bert\.encoder.*(self\.(query|value)|output\.dense)|bert.pooler.dense",
            "rank_pattern": {"attention.output.dense": 2},
            "alpha_pattern": {"layer.1.output.dense": 3.5},
            "task_type": "SEQ_CLS",
        },
    ),
    "gpt2": (
        "GPT2ForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "n_positions": 12,
            "n_embd": 20,
            "n_layer": 2,
            "n_head": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "num_labels": CLASSES,
        },
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "rank_pattern": {"h.1.attn.c_attn": 5},
            "alpha_pattern": {"mlp.c_proj": 9},
            "modules_to_save": ["score"],
            "fan_in_fan_out": True,
        },
    ),
    "resnet": (
        "ResNetForImageClassification",
        {
            "embedding_size": 6,
            "hidden_sizes": [12, 20],
            "depths": [1, 2],
            "layer_type": "bottleneck",
            "hidden_act": "gelu",
            "num_labels": CLASSES,
        },
        {
            "target_modules": r".*(layer\.\d\.convolution|embedder\.convolution)",
            "modules_to_save": ["classifier"],
            "rank_pattern": {r"layers\.1\.layer\.1\.convolution": 3},
            "alpha_pattern": {r"stages\.1.*convolution": 3},
        },
    ),
    "clip": (
        "CLIPModel",
        {
            "text_config": {**BLOCKS, "vocab_size": VOCABULARY, "max_position_embeddings": 12, "eos_token_id": 2},
            "vision_config": {**BLOCKS, "hidden_size": 18, "image_size": 16, "patch_size": 8},
            "projection_dim": 14,
        },
        {
            "target_modules": ["q_proj", "v_proj", "visual_projection"],
            "rank_pattern": {"text_model.*q_proj": 2},
            "alpha_pattern": {"visual_projection": 3},
        },
    ),
}


def randomise(parameters, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.normal_(1.0 if re.search(r"(norm\w*|ln_.)\.weight", name, re.I) else 0.0, 0.2)


def make(family, **options):
    """A peer in evaluation mode with every parameter random, norms and biases included."""
    name, defaults, _ = PEERS[family]
    kind = getattr(transformers, name)
    peer = kind(kind.config_class(**defaults | options))
    randomise(peer.named_parameters(), 0)
    return peer.eval()


def adapt(peer, directory, **options):
    """PEFT's model with random A and B (and heads, and biases), saved into a directory."""
    model = peft.get_peft_model(peer, peft.LoraConfig(init_lora_weights=False, **options)).eval()
    randomise([(name, x) for name, x in model.named_parameters() if x.requires_grad], 1)
    model.save_pretrained(directory)
    return model


def batch_of(family):
    """Arrays by Hugging Face's names; images with channels last."""
    rng = np.random.default_rng(2)
    sizes = {"vit": (24, 16), "clip": (16, 16), "resnet": (24, 24)}
    batch = {}
    if family in sizes:
        batch["pixel_values"] = rng.standard_normal((3, *sizes[family], 3)).astype(np.float32)
    if family not in ("vit", "resnet"):
        real = np.arange(TOKENS) < np.array([[TOKENS], [6], [3]])
        batch["input_ids"] = np.where(real, rng.integers(3, VOCABULARY, (3, TOKENS)), 0)
        batch["attention_mask"] = real.astype(np.int64)
        if family == "clip":
            batch["input_ids"][np.arange(3), real.sum(1) - 1] = 2
    return batch


def torch_outputs(model, batch):
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    if "pixel_values" in tensors:
        tensors["pixel_values"] = tensors["pixel_values"].permute(0, 3, 1, 2)
    outputs = model(**tensors)
    return outputs.logits if "logits" in outputs else outputs.logits_per_image


def ours_of(outputs):
    return outputs["logits"] if "logits" in outputs else outputs["logits_per_image"]


def edit(directory, **values):
    """Change values of a saved adapter's config."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """`bases(family) -> (directory of the base, backbone)`."""
    made = {}

    def base(family):
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            make(family).save_pretrained(directory)
            made[family] = directory, jt.load(str(directory))
        return made[family]

    return base


@pytest.fixture(scope="module", params=[f"{family} {scale}" for family in PEERS for scale in ("lora", "rslora")])
def both(request, bases, tmp_path_factory):
    """An adapter as PEFT and as we have it, on the same base."""
    family, scale = request.param.split()
    directory = tmp_path_factory.mktemp(f"{family}_{scale}")
    options = {"r": 4, "lora_alpha": 6, "use_rslora": scale == "rslora", **PEERS[family][2]}
    theirs = adapt(make(family), directory, **options)
    base, backbone = bases(family)
    batch = batch_of(family)
    outputs = torch_outputs(theirs, batch)
    outputs.square().mean().backward()
    ours = jt.load_adapter(backbone, str(directory))
    found, gradients = with_gradients(ours, batch)
    return {
        "family": family,
        "base": base,
        "batch": batch,
        "theirs": theirs,
        "outputs": outputs.detach().numpy(),
        "ours": ours,
        "our outputs": found,
        "our gradients": gradients,
    }


def with_gradients(adapter, batch):
    """Outputs, and the gradients of their mean square in what the adapter has; compiled together."""
    model = Intercepted(adapter.model, adapter.method.adds)

    def loss(params):
        outputs = ours_of(apply(model, adapter.backbone.params | adapter.backbone.state | params, batch, train=False))
        return jnp.square(outputs).mean(), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapter.params)
    return outputs, gradients


def test_an_adapter_of_peft_gives_its_outputs(both):
    np.testing.assert_allclose(both["our outputs"], both["outputs"], **CLOSE)
    plain = type(both["theirs"].get_base_model()).from_pretrained(both["base"]).eval()
    assert np.abs(torch_outputs(plain, both["batch"]).detach().numpy() - both["outputs"]).max() > 0.1


def test_what_we_write_gives_the_same_outputs_in_peft_heads_included(both, tmp_path):
    write_adapter(tmp_path / "adapter", both["ours"])
    again = peft.PeftModel.from_pretrained(
        type(both["theirs"].get_base_model()).from_pretrained(both["base"]), tmp_path / "adapter"
    )
    np.testing.assert_allclose(torch_outputs(again.eval(), both["batch"]).detach(), both["outputs"], **CLOSE)
    theirs, ours = both["theirs"].peft_config["default"], again.peft_config["default"]
    assert (theirs.r, theirs.lora_alpha, theirs.use_rslora) == (ours.r, ours.lora_alpha, ours.use_rslora)


def test_the_method_of_a_loaded_adapter_has_exactly_its_leaves_and_they_learn(both):
    ours, backbone = both["ours"], both["ours"].backbone
    adapted = methods.adapt(ours.method, ours.model, backbone.params | backbone.state, backbone.config.inputs)
    added = {path: x.shape for path, x in adapted.shapes.items() if path not in backbone.params}
    assert added == {path: x.shape for path, x in ours.params.items()}
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} == added.keys()


def test_gradients_of_a_and_b_and_of_the_head_are_those_of_peft(both):
    found = both["our gradients"]
    theirs = {name: x.grad.numpy() for name, x in both["theirs"].named_parameters() if x.requires_grad}
    largest = sorted(float(np.abs(x).max()) for x in theirs.values())
    assert largest == pytest.approx(sorted(float(np.abs(x).max()) for x in found.values()), rel=1e-3, abs=1e-6)
    of_block_1 = {
        "vit": ("vit.layers.1.attention.q_proj", "encoder/block_1/attention/query"),
        "bert": ("bert.encoder.layer.1.attention.self.query", "encoder/block_1/attention/query"),
        "gpt2": ("transformer.h.1.attn.c_attn", "encoder/block_1/attention/qkv"),
        "clip": ("vision_model.encoder.layers.1.self_attn.q_proj", "vision/encoder/block_1/attention/query"),
        "resnet": ("resnet.encoder.stages.1.layers.1.layer.1.convolution", "stage_1/block_1/conv_2"),
    }
    name, layer = of_block_1[both["family"]]
    for theirs_side, side in (("lora_A", "a"), ("lora_B", "b")):
        expected = theirs[f"base_model.model.{name}.{theirs_side}.default.weight"]
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected.T
        expected = expected.reshape(found[f"{layer}/lora/{side}"].shape)
        bound = 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(found[f"{layer}/lora/{side}"], expected, atol=bound, rtol=0)


def same_when_merged(model, adapter, tmp_path):
    """Whether merging leaves the same weights; nothing is compiled for that."""
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    theirs, ours = jt.load(str(tmp_path / "merged")).params, adapter.merged().params
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=1e-5, rtol=0, err_msg=path)


CHOICES = {
    "every linear layer, the head's too": {"target_modules": "all-linear"},
    "every linear layer but one": {"target_modules": "all-linear", "exclude_modules": ["fc2", "classifier"]},
    "the layers of one block": {"target_modules": ["fc1", "o_proj"], "layers_to_transform": 1},
    "blocks of a list by its name": {
        "target_modules": ["fc1"],
        "layers_to_transform": [0],
        "layers_pattern": ["layers"],
    },
    "whole names": {"target_modules": ["vit.layers.0.mlp.fc2"]},
    "all biases": {"target_modules": ["k_proj", "fc1"], "bias": "all", "modules_to_save": ["classifier"]},
    "biases of its layers": {"target_modules": ["k_proj", "fc1"], "bias": "lora_only"},
    "other modules too": {"target_modules": ["k_proj"], "modules_to_save": ["layernorm", "0.mlp.fc2", "classifier"]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_whatever_the_config_chooses_loads_and_is_written_again(choice, bases, tmp_path):
    base, backbone = bases("vit")
    theirs = adapt(make("vit"), tmp_path / "theirs", r=3, **CHOICES[choice])
    ours = jt.load_adapter(backbone, str(tmp_path / "theirs"))
    write_adapter(tmp_path / "ours", ours)
    again = peft.PeftModel.from_pretrained(
        transformers.ViTForImageClassification.from_pretrained(base), tmp_path / "ours"
    )
    batch = batch_of("vit")
    np.testing.assert_allclose(
        torch_outputs(again.eval(), batch).detach(), torch_outputs(theirs, batch).detach(), **CLOSE
    )
    same_when_merged(theirs, ours, tmp_path)
    adapted = methods.adapt(ours.method, ours.model, backbone.params, backbone.config.inputs)
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} == ours.params.keys()


HUB_NAMES = (
    ("vit.layers.", "vit.encoder.layer."),
    (".attention.q_proj", ".attention.attention.query"),
    (".attention.v_proj", ".attention.attention.value"),
    (".attention.o_proj", ".attention.output.dense"),
    (".mlp.fc1", ".intermediate.dense"),
    (".mlp.fc2", ".output.dense"),
)


@pytest.mark.parametrize("config_too", [True, False])
def test_names_of_before_transformers_5_load_as_those_of_after(config_too, bases, tmp_path):
    _, backbone = bases("vit")
    new, old = tmp_path / "new", tmp_path / "old"
    patterns = {"rank_pattern": {"layers.1.attention.q_proj": 2}, "alpha_pattern": {"layers.0.mlp.fc1": 3}}
    adapt(make("vit"), new, target_modules=["q_proj", "fc1", "fc2"], modules_to_save=["classifier"], **patterns)

    def rename(name):
        for here, there in HUB_NAMES:
            name = name.replace(here, there)
        return name

    old.mkdir()
    tensors = {rename(name): x for name, x in load_file(new / "adapter_model.safetensors").items()}
    assert "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight" in tensors
    save_file(tensors, old / "adapter_model.safetensors")
    (old / "adapter_config.json").write_text((new / "adapter_config.json").read_text())
    if config_too:
        edit(
            old,
            target_modules=["query", "intermediate.dense", "0.output.dense", "1.output.dense"],
            rank_pattern={"layer.1.attention.attention.query": 2},
            alpha_pattern={r".*encoder\.layer\.0\.intermediate.dense": 3},
        )
    one, other = (jt.load_adapter(backbone, str(directory)) for directory in (new, old))
    assert one.method.parts == other.method.parts
    assert one.params.keys() == other.params.keys()
    assert all((other.params[path] == leaf).all() for path, leaf in one.params.items())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_an_adapter_in_another_precision_is_read_into_that_of_the_base(dtype, bases, tmp_path):
    _, backbone = bases("vit")
    adapt(make("vit"), tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: x.astype(dtype) for name, x in tensors.items()}, tmp_path / "adapter_model.safetensors")
    ours = jt.load_adapter(backbone, str(tmp_path))
    (a,) = (x for name, x in tensors.items() if "layers.0.attention.q_proj.lora_A" in name)
    found = ours.params["encoder/block_0/attention/query/lora/a"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, a.T.astype(dtype).astype(np.float32))


def test_an_adapter_of_a_base_model_loads_and_leaves_the_head_of_the_backbone_alone(bases, tmp_path):
    _, backbone = bases("vit")
    adapt(make("vit").vit, tmp_path, target_modules=["q_proj"])
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.layers.0.attention.q_proj.lora_A.weight" in names
    ours = jt.load_adapter(backbone, str(tmp_path))
    assert ours.head is None and ours.classes == backbone.classes
    assert ours.merged().head == backbone.head


def test_a_head_for_another_task_stands_beside_that_of_the_backbone(bases, tmp_path):
    _, backbone = bases("bert")
    peer = transformers.BertForTokenClassification(transformers.BertConfig(**PEERS["bert"][1] | {"num_labels": 3}))
    peer.bert = make("bert").bert
    theirs = adapt(peer.eval(), tmp_path, target_modules=["query"], task_type="TOKEN_CLS")
    ours = jt.load_adapter(backbone, str(tmp_path))
    assert ours.head == Head(3, reads="last_hidden_state") and ours.classes == ("0", "1", "2")
    batch = batch_of("bert")
    np.testing.assert_allclose(ours(batch)["logits"], torch_outputs(theirs, batch).detach(), **CLOSE)


def test_a_trained_method_of_ours_is_written_as_peft_has_it(bases, tmp_path):
    base, backbone = bases("bert")
    method = methods.lora(rank=2, alpha=5, rs=True, target=".*(key|up)", ranks={".*1/mlp/up": 4}, alphas={".*key": 2})
    method += methods.bitfit()
    head = Head(3)
    adapter = Adapter(backbone, method, {}, head, ("a", "b", "c"))
    adapted = methods.adapt(method, adapter.model, backbone.params, backbone.config.inputs)
    rng = np.random.default_rng(3)
    learned = {path: x for path, x in adapted.shapes.items() if adapted.rates[path] != FROZEN}
    params = {path: 0.2 * rng.standard_normal(x.shape).astype(np.float32) for path, x in learned.items()}
    adapter = Adapter(backbone, method, params, head, ("a", "b", "c"))
    write_adapter(tmp_path / "adapter", adapter)
    peer = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(peer, tmp_path / "adapter").eval()
    config = theirs.peft_config["default"]
    assert (config.use_rslora, config.bias, config.r, config.task_type) == (True, "all", 2, "SEQ_CLS")
    batch = batch_of("bert")
    np.testing.assert_allclose(torch_outputs(theirs, batch).detach(), adapter(batch)["logits"], **CLOSE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of an adapter for `PEERS["vit"]`, to be damaged."""
    directory = tmp_path_factory.mktemp("saved")
    adapt(make("vit"), directory, target_modules=["q_proj"], modules_to_save=["classifier"])
    config = json.loads((directory / "adapter_config.json").read_text())
    return config, load_file(directory / "adapter_model.safetensors")


@pytest.fixture
def refused(saved, bases, tmp_path):
    """`refused(change) -> message`, where `change(config, tensors)` damages an adapter."""

    def refuse(change):
        config, tensors = dict(saved[0]), dict(saved[1])
        change(config, tensors)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(InputError) as error:
            jt.load_adapter(bases("vit")[1], str(tmp_path))
        assert "\n" not in str(error.value)
        return str(error.value)

    return refuse


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "'layers.0.attention.q_proj.lora_magnitude_vector' is missing"),
        ({"peft_type": "ADALORA"}, 'peft_type "ADALORA" is not supported; expected one of LORA, VERA'),
        ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights="pissa_niter_4" (it changes the base'),
        ({"init_lora_weights": "corda"}, 'init_lora_weights="corda"'),
        ({"lora_bias": True, "alora_invocation_tokens": [1]}, "alora_invocation_tokens=[1], lora_bias=true"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices=[3]"),
        ({"target_parameters": ["w"]}, 'target_parameters=["w"]'),
        ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]]"),
        ({"megatron_config": {"tp": 2}}, 'megatron_config={"tp": 2}'),
        ({"of_tomorrow": 0.5}, "of_tomorrow=0.5"),
        ({"r": 0}, "r is 0; expected a whole number above 0"),
        ({"lora_alpha": "big"}, 'lora_alpha is "big"; expected a number'),
        ({"rank_pattern": [1]}, "rank_pattern is [1]; expected an object"),
        ({"rank_pattern": {"q(": 2}}, "'q(' is not a regular expression"),
        ({"target_modules": {"a": 1}}, "target_modules is {"),
        ({"auto_mapping": 3}, "auto_mapping is 3; expected an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values, message, refused):
    assert message in refused(lambda config, tensors: config.update(values))


READ = sorted({*COMMON, *FORMATS["LORA"].numbers, *FORMATS["LORA"].patterns, *FORMATS["LORA"].flags})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(READ), value=JSON)
def test_whatever_a_config_says_is_read_or_refused_in_one_line(key, value, saved, bases, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved[0] | {key: value}))
    save_file(saved[1], tmp_path / "adapter_model.safetensors")
    try:
        jt.load_adapter(bases("vit")[1], str(tmp_path))
    except InputError as error:
        assert "\n" not in str(error)


def test_what_only_says_how_it_was_made_is_no_hindrance(saved, bases, tmp_path):
    values = {"init_lora_weights": "gaussian", "peft_version": "9.9", "revision": "x", "of_tomorrow": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved[0] | values))
    save_file(saved[1], tmp_path / "adapter_model.safetensors")
    jt.load_adapter(bases("vit")[1], str(tmp_path))


Q = "base_model.model.vit.layers.{}.attention.q_proj.lora_{}.weight"


def test_every_tensor_that_does_not_fit_is_listed_in_one_line(refused):
    def change(config, tensors):
        del tensors[Q.format(0, "A")]
        tensors[Q.format(1, "B")] = np.ascontiguousarray(tensors[Q.format(1, "B")].T)
        tensors["base_model.model.vit.layers.0.attention.z_proj.lora_A.weight"] = np.zeros((8, 24), np.float32)
        tensors["base_model.model.classifier.bias"] = np.zeros(CLASSES, np.int32)

    line = refused(change)
    assert "'layers.0.attention.q_proj.lora_A.weight' is missing for encoder/block_0/attention/query/lora/a" in line
    assert "vit.layers.1.attention.q_proj.lora_B.weight' has shape [24, 8]" in line and "expected [8, 24]" in line
    assert "'vit.layers.0.attention.z_proj.lora_A.weight' belongs to no leaf" in line
    assert "'classifier.bias' is int32, expected a floating-point type" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: [t.pop(name) for name in list(t) if "layers.1" in name], "layers.1.attention.q_proj.lora_A"),
        (lambda c, t: [t.pop(name) for name in list(t) if "classifier" in name], "'classifier.weight' is missing"),
        (lambda c, t: t.pop("base_model.model.classifier.bias"), "'classifier.bias' is missing"),
        (lambda c, t: c.update(r=7), "has shape [24, 8] for encoder/block_0/attention/query/lora/a, expected [24, 7]"),
        (lambda c, t: t.update({"vit.x": t[Q.format(0, "A")]}), "'vit.x' (expected base_model.model....)"),
        (
            lambda c, t: t.update({"base_model.model.vit.e.lora_embedding_A": t[Q.format(0, "A")]}),
            "'vit.e.lora_embedding_A' belongs to no leaf",
        ),
        (
            lambda c, t: t.update(
                {"base_model.model.vit.embeddings.patch_embeddings.projection.lora_A.weight": np.zeros((2, 3, 8, 8))}
            ),
            "'vit.embeddings.patch_embeddings.projection.lora_A.weight' belongs to no leaf",
        ),
    ],
)
def test_what_is_missing_or_has_no_place_is_named(change, message, refused):
    assert message in refused(change)


def test_a_head_of_unknown_kind_is_asked_for(bases, tmp_path, saved):
    _, backbone = bases("vit")
    make("vit").vit.save_pretrained(tmp_path / "base")
    headless = jt.load(str(tmp_path / "base"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(saved[0] | {"auto_mapping": None}))
    save_file(saved[1], adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="nothing says of which kind; choose head= one of classification"):
        jt.load_adapter(headless, str(adapter))
    assert jt.load_adapter(headless, str(adapter), head="classification").head == backbone.head


def test_a_pickled_adapter_is_refused_with_the_way_out(bases, saved, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved[0]))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="adapter_model.bin is pickled.*AutoPeftModel"):
        jt.load_adapter(bases("vit")[1], str(tmp_path))
    with pytest.raises(InputError, match="has no adapter_config.json"):
        jt.load_adapter(bases("vit")[1], str(bases("vit")[0]))


def test_what_peft_cannot_say_is_refused_by_name(bases, tmp_path):
    _, backbone = bases("bert")
    shapes = {path: np.zeros(x.shape, np.float32) for path, x in backbone.params.items()}
    side = {
        "encoder/block_0/attention/query/lora/a": np.zeros((24, 8), np.float32),
        "encoder/block_0/attention/query/lora/b": np.zeros((8, 24), np.float32),
    }
    write = partial(write_adapter, tmp_path / "adapter")
    with pytest.raises(InputError, match="method 'probe' has 0 updates of kernels"):
        write(Adapter(backbone, methods.probe(), {}, None, ()))
    norm = {"encoder/block_0/norm_1/scale": shapes["encoder/block_0/norm_1/scale"]}
    with pytest.raises(InputError, match="neither all biases.*encoder/block_0/norm_1/scale"):
        write(Adapter(backbone, methods.lora(), side | norm, None, ()))
    with pytest.raises(InputError, match="no name in this format for encoder/own"):
        write(Adapter(backbone, methods.lora(), side | {"encoder/own": np.zeros(2)}, None, ()))
    assert not (tmp_path / "adapter").exists() and not list(tmp_path.iterdir())
