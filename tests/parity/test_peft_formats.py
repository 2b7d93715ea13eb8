"""Every method of PEFT that has files of ours: the same outputs and gradients, files in and out, merged weights."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods
from jtransfer.checkpoints import Adapter, write_adapter
from jtransfer.checkpoints.huggingface import family_of
from jtransfer.checkpoints.peft_formats import FORMATS
from jtransfer.checkpoints.peft_names import table
from jtransfer.errors import InputError
from jtransfer.methods.method import Intercepted
from jtransfer.models import apply
from jtransfer.tree import FROZEN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLASSES, TOKENS, WORDS = 5, 7, 31
BLOCKS = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
PEERS = {
    "vit": (
        "ViTForImageClassification",
        {**BLOCKS, "image_size": 16, "patch_size": 8, "qkv_bias": True, "num_labels": CLASSES},
    ),
    "bert": (
        "BertForSequenceClassification",
        {**BLOCKS, "vocab_size": WORDS, "max_position_embeddings": 12, "num_labels": CLASSES},
    ),
    "gpt2": (
        "GPT2ForSequenceClassification",
        {"vocab_size": WORDS, "n_positions": 12, "n_embd": 24, "n_layer": 1, "n_head": 2, "num_labels": CLASSES}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 6, "hidden_sizes": [8], "depths": [1], "layer_type": "bottleneck", "num_labels": CLASSES}
        | {"hidden_act": "gelu"},
    ),
}
HEADS = {"vit": "classifier", "bert": "classifier", "gpt2": "score"}
CONVOLUTIONS = r".*(embedder|layer\.\d)\.convolution"
Q = ["q_proj", "fc1"]
CASES = {
    "DoRA": ("vit", "Lora", {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": [*Q, "fc2"], "bias": "all"}),
    "DoRA on convolutions": ("resnet", "Lora", {"r": 2, "use_dora": True, "target_modules": CONVOLUTIONS}),
    "LoRA on embeddings": ("bert", "Lora", {"r": 3, "target_modules": ["word_embeddings", "position_embeddings"]}),
    "DoRA on embeddings": ("bert", "Lora", {"r": 3, "use_dora": True, "target_modules": ["word_embeddings", "query"]}),
    "PiSSA": ("vit", "Lora", {"r": 3, "init_lora_weights": "pissa", "target_modules": Q, "rank_pattern": {"fc1": 2}}),
    "PiSSA with DoRA": (
        "gpt2",
        "Lora",
        {"r": 3, "init_lora_weights": "pissa", "use_dora": True, "target_modules": ["c_attn"]},
    ),
    "OLoRA": ("vit", "Lora", {"r": 3, "init_lora_weights": "olora", "use_rslora": True, "target_modules": Q}),
    "VeRA": ("vit", "Vera", {"r": 5, "target_modules": [*Q, "fc2"], "layers_to_transform": [0]}),
    "VeRA on transposed layers": ("gpt2", "Vera", {"r": 5, "target_modules": ["c_attn", "mlp.c_proj"], "bias": "all"}),
    "LoHa": (
        "vit",
        "LoHa",
        {"r": 2, "alpha": 5, "target_modules": Q, "rank_pattern": {"fc1": 6}, "alpha_pattern": {"fc1": 3}},
    ),
    "LoHa on convolutions": ("resnet", "LoHa", {"r": 2, "target_modules": CONVOLUTIONS}),
    "LoKr": (
        "vit",
        "LoKr",
        {"r": 2, "alpha": 5, "target_modules": "all-linear", "exclude_modules": ["fc2", "classifier"]},
    ),
    "LoKr of two products": (
        "bert",
        "LoKr",
        {"r": 1, "decompose_both": True, "decompose_factor": 4, "target_modules": ["query", "output.dense"]},
    ),
    "LoKr on convolutions": (
        "resnet",
        "LoKr",
        {"r": 1, "alpha": 2, "decompose_factor": 2, "target_modules": CONVOLUTIONS},
    ),
    "OFT": ("vit", "OFT", {"oft_block_size": 7, "target_modules": [*Q, "fc2"], "bias": "oft_only"}),
    "OFT with the inverse": (
        "bert",
        "OFT",
        {"r": 3, "oft_block_size": 0, "use_cayley_neumann": False, "target_modules": ["query"]},
    ),
    "OFT of one block": (
        "vit",
        "OFT",
        {"oft_block_size": 4, "block_share": True, "num_cayley_neumann_terms": 3, "target_modules": Q},
    ),
    "OFT on 1x1 convolutions": (
        "resnet",
        "OFT",
        {"oft_block_size": 2, "target_modules": r".*layer\.[02]\.convolution"},
    ),
    "BOFT": ("vit", "BOFT", {"boft_block_size": 4, "target_modules": Q}),
    "BOFT of two factors": (
        "bert",
        "BOFT",
        {"boft_block_num": 4, "boft_block_size": 0, "boft_n_butterfly_factor": 2, "target_modules": ["query"]},
    ),
    "BOFT on convolutions": ("resnet", "BOFT", {"boft_block_size": 2, "target_modules": r".*layer\.\d\.convolution"}),
    "HRA": ("vit", "HRA", {"r": 3, "target_modules": Q}),
    "HRA on convolutions": ("resnet", "HRA", {"r": 2, "target_modules": CONVOLUTIONS}),
    "FourierFT": (
        "vit",
        "FourierFT",
        {"n_frequency": 20, "n_frequency_pattern": {"fc1": 30}, "scaling": 20.0, "target_modules": Q},
    ),
    "FourierFT on transposed layers": (
        "gpt2",
        "FourierFT",
        {"n_frequency": 20, "scaling": 20.0, "random_loc_seed": 3, "target_modules": ["c_attn"]},
    ),
    "(IA)3": ("vit", "IA3", {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]}),
    "(IA)3 on transposed layers": (
        "gpt2",
        "IA3",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "(IA)3 on convolutions": (
        "resnet",
        "IA3",
        {"target_modules": CONVOLUTIONS, "feedforward_modules": r".*layer\.1\.convolution"},
    ),
    "norms": ("vit", "LNTuning", {"target_modules": r".*layernorm.*"}),
    "norms of BERT": ("bert", "LNTuning", {"target_modules": ["LayerNorm"]}),
}
TYPES = {"LNTuning": "LN_TUNING"}


def randomise(parameters, seed, scale=0.2):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in parameters:
            x.normal_(1.0 if re.search(r"norm\w*\.(\w+\.)*weight|ln_.\.weight", name, re.I) else 0.0, scale)


def make(family):
    name, options = PEERS[family]
    kind = getattr(transformers, name)
    peer = kind(kind.config_class(**options))
    randomise(peer.named_parameters(), 0, 0.4 if family == "resnet" else 0.2)
    return peer.eval()


def batch_of(family):
    rng = np.random.default_rng(2)
    if family in ("vit", "resnet"):
        return {"pixel_values": rng.standard_normal((3, 16, 16, 3)).astype(np.float32)}
    real = np.arange(TOKENS) < np.array([[TOKENS], [5], [3]])
    return {
        "input_ids": np.where(real, rng.integers(3, WORDS, (3, TOKENS)), 0),
        "attention_mask": real.astype(np.int64),
    }


def logits_of(model, batch):
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    if "pixel_values" in tensors:
        tensors["pixel_values"] = tensors["pixel_values"].permute(0, 3, 1, 2)
    return model(**tensors).logits


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(family):
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            make(family).save_pretrained(directory)
            made[family] = directory, jt.load(str(directory))
        return made[family]

    return base


@pytest.fixture(scope="module", autouse=True)
def without_cuda():
    """BOFT's factors, which PEFT multiplies by a kernel of CUDA's alone."""
    from peft.tuners.boft import layer

    class Blocks:
        forward = staticmethod(lambda x: [torch.stack([torch.block_diag(*one) for one in x])])

    class Diagonal:
        apply = staticmethod(lambda x: Blocks.forward(x)[0])

    before = layer.get_fbd_cuda, layer.FastBlockDiag
    layer.get_fbd_cuda, layer.FastBlockDiag = lambda: Blocks, Diagonal
    torch.backends.mkldnn.enabled = False  # PyTorch 2.13's oneDNN crashes in the backward pass of a convolution
    yield
    layer.get_fbd_cuda, layer.FastBlockDiag = before
    torch.backends.mkldnn.enabled = True


def adapted(case, directory):
    family, name, options = CASES[case]
    start = {"Lora": "init_lora_weights", "IA3": "init_ia3_weights", "LNTuning": ""}.get(name, "init_weights")
    head = {} if family == "resnet" else {"modules_to_save": [HEADS[family]]}  # PEFT saves no head of several modules
    options = ({start: False} if start else {}) | head | options
    model = peft.get_peft_model(make(family), getattr(peft, f"{name}Config")(**options)).eval()
    randomise(
        [(name, x) for name, x in model.named_parameters() if x.requires_grad], 1, 0.4 if family == "resnet" else 0.2
    )
    model.save_pretrained(directory)
    return model


def computed(adapter, batch):
    """Logits, the gradients of their mean square in what learns, and the merged tree; compiled together."""
    model = Intercepted(adapter.model, adapter.method.adds)
    base = adapter.backbone.params | adapter.backbone.state

    def loss(learned, frozen):
        logits = apply(model, base | frozen | learned, batch, train=False)["logits"]
        return jnp.square(logits).mean(), logits

    rates = methods.adapt(adapter.method, adapter.model, base, adapter.backbone.config.inputs).rates
    learned = {path: x for path, x in adapter.params.items() if rates[path] != FROZEN}
    frozen = {path: x for path, x in adapter.params.items() if path not in learned}

    @jax.jit
    def run(learned, frozen, base):
        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(learned, frozen)
        return logits, gradients, adapter.method.merge(base | frozen | learned)

    return run(learned, frozen, base)


def as_ours(backbone, format, tensors):
    """Tensors of PEFT's model in memory by our paths."""
    kind = "classification" if "pixel_values" in backbone.config.inputs else "sequence"
    names, tree = table(family_of(backbone)[1].names(backbone.config, kind), format), {}
    for name, x in tensors.items():
        name = re.sub(r"^base_model\.model\.|\.default|\.modules_to_save", "", name)
        for path, layout, part in names.targets(name.replace("_vector.weight", "_vector")):
            tree[re.sub("^source_head", "head", path)] = layout.load(x.numpy())[part]
    return tree


SLOW = {
    "LoRA on embeddings",
    "PiSSA with DoRA",
    "LoKr of two products",
    "OFT of one block",
    "OFT on 1x1 convolutions",
    "BOFT on convolutions",
    "FourierFT on transposed layers",
    "(IA)3 on transposed layers",
    "norms of BERT",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_files_of_peft_give_its_outputs_and_gradients_and_ours_do_in_peft(case, bases, tmp_path):
    family, name, _ = CASES[case]
    base, backbone = bases(family)
    theirs = adapted(case, tmp_path / "theirs")
    batch = batch_of(family)
    expected = logits_of(theirs, batch)
    expected.square().mean().backward()
    expected = expected.detach().numpy()
    assert np.abs(logits_of(make(family), batch).detach().numpy() - expected).max() > 1e-2

    ours = jt.load_adapter(backbone, str(tmp_path / "theirs"))
    found, gradients, merged = computed(ours, batch)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    format = FORMATS[TYPES.get(name, name.upper())]
    wanted = {name: x.grad for name, x in theirs.named_parameters() if x.requires_grad and x.grad is not None}
    wanted = as_ours(backbone, format, wanted)
    assert wanted.keys() == gradients.keys()
    largest = max(np.abs(x).max() for x in wanted.values())
    for path, x in wanted.items():
        bound = 1e-3 * max(np.abs(x).max(), 1e-3 * largest)
        np.testing.assert_allclose(gradients[path], x.reshape(gradients[path].shape), atol=bound, rtol=0, err_msg=path)

    write_adapter(tmp_path / "ours", ours)
    again = peft.PeftModel.from_pretrained(type(make(family)).from_pretrained(base), tmp_path / "ours").eval()
    np.testing.assert_allclose(logits_of(again, batch).detach(), expected, atol=1e-4, rtol=0)
    if name != "LNTuning":  # PEFT merges no norms where there is a head
        plain = again.merge_and_unload()
        plain.save_pretrained(tmp_path / "merged")
        for path, leaf in jt.load(str(tmp_path / "merged")).params.items():
            path = re.sub("^source_head", "head", path) if ours.head else path
            np.testing.assert_allclose(merged[path], leaf, atol=2e-5, rtol=1e-4, err_msg=path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(case) -> directory` of an adapter of PEFT, made once."""
    made = {}

    def of(case):
        if case not in made:
            made[case] = tmp_path_factory.mktemp("saved")
            adapted(case, made[case])
        return made[case]

    return of


@pytest.mark.parametrize(
    ("case", "values", "message"),
    [
        ("VeRA", {"save_projection": False}, "save_projection=false (the random matrices are not in the file"),
        ("LoHa", {"use_effective_conv2d": True}, "not supported: use_effective_conv2d=true"),
        ("OFT", {"coft": True}, "not supported: coft=true"),
        ("OFT", {"r": 3}, "oft_block_size is 7 and r is 3; expected one of them to be 0"),
        ("OFT", {"num_cayley_neumann_terms": 2}, "num_cayley_neumann_terms is 2; expected a whole number from 3"),
        ("OFT", {"oft_block_size": 5}, "oft_R.weight' has shape [4, 15] for encoder/block_0/attention/query/oft/r"),
        ("HRA", {"apply_GS": True}, "not supported: apply_GS=true"),
        ("HRA", {"r": 30}, "hra: rank 30 is above the 24 inputs of layer"),
        ("BOFT", {"boft_block_size": 5}, "boft: a block size of 5 does not divide the 24 inputs"),
        ("FourierFT", {"n_frequency": 1 << 20}, "fourierft: 1048576 coefficients are more than the 576 entries"),
        ("LoKr", {"decompose_factor": 0}, "decompose_factor is 0; expected -1 or a whole number above 0"),
        (
            "(IA)3",
            {"feedforward_modules": ["k_proj"]},
            "fc2.ia3_l' has shape [40] for encoder/block_0/mlp/down/ia3/scale",
        ),
        ("norms", {"of_tomorrow": 1}, "not supported: of_tomorrow=1"),
    ],
)
def test_what_a_config_says_and_we_have_not_is_refused_by_name(case, values, message, saved, bases, tmp_path):
    shutil.copytree(saved(case), tmp_path / "changed")
    config = tmp_path / "changed" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        jt.load_adapter(bases(CASES[case][0])[1], str(tmp_path / "changed"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        (
            "gpt2",
            "loha(rank=2)",
            "LOHA has no tensors for encoder/block_0/attention/qkv, as these layers lie in PyTorch",
        ),
        ("vit", "oft(block=4, blocks={'.*query': 8})", "OFT has one block size for all layers, and these have [4, 8]"),
        ("vit", "lora + ia3", "has 2 updates of kernels; an adapter of PEFT has one of boft, fourierft, hra"),
        ("vit", "houlsby(width=2)", "has 0 updates of kernels"),
    ],
)
def test_what_peft_has_not_is_refused_by_name(family, text, message, bases, tmp_path):
    backbone, method = bases(family)[1], methods.parse(text)
    made = methods.adapt(method, backbone.whole, backbone.params, backbone.config.inputs)
    params = {path: np.zeros(x.shape, x.dtype) for path, x in made.shapes.items() if path not in backbone.params}
    with pytest.raises(InputError, match=re.escape(message)):
        write_adapter(tmp_path / "adapter", Adapter(backbone, method, params))
    assert not list(tmp_path.iterdir())


def test_an_update_of_a_tied_table_parts_it_from_the_head_as_in_peft(tmp_path):
    options = {"vocab_size": WORDS, "n_positions": 12, "n_embd": 24, "n_layer": 1, "n_head": 2}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, bos_token_id=1, eos_token_id=2)).eval()
    randomise(peer.named_parameters(), 0)
    peer.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["wte"], init_lora_weights=False)
    theirs = peft.get_peft_model(peer, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "theirs"))
    batch = batch_of("gpt2")
    expected = logits_of(theirs, batch).detach().numpy()[batch["attention_mask"] == 1]
    for model in (ours, ours.merged()):
        np.testing.assert_allclose(model(batch)["logits"][batch["attention_mask"] == 1], expected, atol=1e-4)
