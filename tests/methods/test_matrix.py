"""Every method on every family of backbones: what runs learns, moves what it declares alone, and is kept whole.

And under every way of running, with recomputed blocks, in half precision, on meshes, among other trials.

`docs/methods.md` has the table. A new method has a row in `TEXTS`; a changed table is written by

    UPDATE_DOCS=1 pytest -n0 -m slow tests/methods/test_matrix.py -k table
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.checkpoints import Adapter, Backbone, deltas
from jtransfer.devices import sharding
from jtransfer.errors import InputError
from jtransfer.methods.endings import now
from jtransfer.models import Classifier, Head, Headed, complete
from jtransfer.models.elmo import LETTERS
from jtransfer.objectives import classification, make_loss
from jtransfer.objectives.contrastive import clip
from jtransfer.train import Optimiser, TrainState, TrialData, make_step, make_trial, plan
from jtransfer.train.phases import entered
from jtransfer.train.state import lay_out
from jtransfer.tree import FROZEN, merge, partition

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- the table -->\n", "<!-- until here -->\n"
CLASSES, STEPS, WORDS = 3, 12, 12
VIT = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 2, "heads": 2}
TEXT = {"vocabulary": 20, "positions": 2 * WORDS, "width": 16, "depth": 2, "heads": 2}
ELMO = {"character_width": 4, "filters": (4, 4), "highways": 1, "width": 8, "hidden": 12, "vocabulary": 0}
FAMILIES = {
    "ViT": lambda: models.build("vit", **VIT),
    "CNN": lambda: models.build("resnet", image=(16, 16), channels=1, stem=8, widths=(8, 16), depths=(1, 1)),
    "BERT": lambda: models.build("bert", **TEXT),
    "GPT-2": lambda: models.build("gpt2", **TEXT),
    "Llama": lambda: models.build("llama", **TEXT, kv_heads=1, hidden=24),
    "ModernBERT": lambda: models.build("modernbert", **TEXT, hidden=24, window=4, global_every=2, padding=0),
    "ELMo": lambda: models.build("elmo", **ELMO),
    "AWD-LSTM": lambda: models.build("awd_lstm", vocabulary=20, longest=2 * WORDS, width=16, hidden=12, layers=2),
    "CLIP": lambda: models.build("clip", projection=8, vision=VIT, text=TEXT),
}
"""A small backbone of each; CLIP's two towers are trained on pairs, or on classes by name, the others on classes."""

TEXTS = {
    "probe": "probe",
    "finetune": "finetune(backbone=0.5)",
    "scratch": "scratch",
    "top_blocks": "top_blocks(1)",
    "layerwise": "layerwise(0.75)",
    "unfreeze": "unfreeze(1, decay=0.75)",
    "bitfit": "bitfit",
    "norm": "norm",
    "frozen_norm": "finetune + frozen_norm",
    "rules": "rules('head/.*', '.*/(bias|scale)')",
    "lora": "lora",
    "vera": "vera(rank=8)",
    "loha": "loha(rank=2)",
    "lokr": "lokr(rank=2)",
    "fourierft": "fourierft(number=50, scale=20.0)",
    "oft": "oft(block=4)",
    "boft": "boft(block=4)",
    "hra": "hra(rank=4)",
    "ia3": "ia3",
    "houlsby": "houlsby(width=4)",
    "pfeiffer": "pfeiffer",
    "adaptformer": "adaptformer(width=4)",
    "compacter": "compacter(width=4)",
    "prompt": "prompt",
    "prefix": "prefix",
    "vpt": "vpt",
    "clip_adapter": "clip_adapter(reduction=1)",
    "coop": "coop(length=4)",
    "l2sp": "finetune + l2sp",
    "ewc": "finetune + ewc",
    "lwf": "finetune + lwf",
    "wise_ft": "probe >> finetune + wise_ft",
    "patch_dropout": "finetune + patch_dropout",
    "distill": "finetune + distill",
    "distill_features": "finetune + distill_features",
    "distill_attention": "finetune + distill_attention",
    "scalar_mix": "scalar_mix",
}
"""How the table writes each method: its defaults, and what it needs beside it."""
OF_FAMILY = {
    ("lora", "CNN"): "lora(target='.*conv.*')",
    ("wise_ft", "CNN"): "probe >> finetune + frozen_norm + wise_ft",
    ("wise_ft", "CLIP"): "finetune + wise_ft",
    ("loha", "CNN"): "loha(rank=2, target='.*conv.*')",
    ("lokr", "CNN"): "lokr(rank=2, target='.*conv.*')",
    ("oft", "CNN"): "oft(block=4, target='.*shortcut.*')",
    ("boft", "CNN"): "boft(block=2, target='.*block.*conv.*')",
    ("hra", "CNN"): "hra(rank=2, target='.*conv.*')",
    ("ia3", "CNN"): "ia3('.*conv.*')",
    ("lora", "ELMo"): "lora(target='.*(conv_1|input|state)')",
    ("lora", "AWD-LSTM"): "lora(target='.*(input|hidden)')",
    **{
        (name, family): f"{name}({option}, target='.*input')"
        for name, option in {
            "vera": "rank=8",
            "loha": "rank=2",
            "lokr": "rank=2",
            "fourierft": "number=50, scale=20.0",
            "oft": "block=4",
            "boft": "block=4",
            "hra": "rank=4",
        }.items()
        for family in ("ELMo", "AWD-LSTM")
    },
    ("ia3", "ELMo"): "ia3('.*input')",
    ("ia3", "AWD-LSTM"): "ia3('.*input')",
}
"""Where a family takes it with other options."""
QUICK = [("lora", "ViT"), ("norm", "CNN"), ("unfreeze", "BERT"), ("ia3", "GPT-2"), ("houlsby", "CLIP")]
PARTS = {"teacher": (CLASSES,), "recorded": (5,), "teacher_features": (16,), "teacher_map": (2, 2)}
PARTS = {name: jax.ShapeDtypeStruct((1, *shape), jnp.float32) for name, shape in PARTS.items()}
PARTS["labels"] = jax.ShapeDtypeStruct((1,), jnp.int32)
"""What a batch of rows has beside the inputs."""
CELLS = [(name, family) for name in TEXTS for family in FAMILIES]


@pytest.fixture(scope="module")
def backbones():
    """`backbones(family)`: a backbone with random leaves, made once."""
    made = {}

    def make(family):
        if family not in made:
            module = FAMILIES[family]()
            tree = jax.jit(lambda key: complete(module, key, {}, module.config.inputs))(jax.random.key(1))
            rng = np.random.default_rng(0)
            tree = {
                path: x + 0.05 * np.float32(rng.normal(size=x.shape)) * (not path.endswith(("/mean", "/var")))
                for path, x in tree.items()
            }
            state = {path: x for path, x in tree.items() if path.startswith(models.STATISTICS)}
            params = {path: x for path, x in tree.items() if path not in state}
            made[family] = with_head(Backbone(family, module, params, state=state))
        return made[family]

    return make


SOURCE = 5
"""Classes of the backbone's own head."""


def with_head(backbone):
    """A backbone with a head of its own, but for a dual encoder."""
    if backbone.name == "CLIP":
        return backbone
    kernel = np.float32(np.random.default_rng(3).normal(size=(width_of(backbone.config), SOURCE)))
    own = {"source_head/kernel": kernel, "source_head/bias": np.zeros(SOURCE, np.float32)}
    return replace(backbone, params=backbone.params | own, head=Head(SOURCE), classes=tuple("vwxyz"))


def width_of(config):
    """Of the features: those of AWD-LSTM are the last state, the maximum and the mean of 16 values."""
    return 48 if config.recurrent else 16


def parts_of(config):
    """`PARTS`, with a teacher whose features are as wide as those of a backbone."""
    return PARTS | {"teacher_features": jax.ShapeDtypeStruct((1, width_of(config)), jnp.float32)}


def parsed(text, config):
    """A method that is made for the parts of a batch and a backbone."""
    return methods.parse(text).bound(methods.Given(parts_of(config), config, Head(SOURCE), width_of(config)))


def held(adapted, base):
    """What a method holds beside the model's leaves; every weight matters as much as any other."""
    return adapted.held(base | {path: np.full(x.shape, 1e-3, np.float32) for path, x in adapted.told.items()})


def subject(name, family, backbone):
    """What a method adapts of a family, and the head that predicts; None of pairs."""
    names = methods.parse(TEXTS[name]).names
    if family != "CLIP" or not names:
        return backbone, None if family == "CLIP" else Head(CLASSES)
    if names == "head":
        return backbone.tower("images"), Head(CLASSES, reads="image_embeds")
    text = replace(backbone.config.text, pool="largest")
    module = models.of_config(replace(backbone.config, text=text))
    return replace(backbone, model=module), Head(CLASSES, reads="image_embeds", texts=(3, 19, 4, 19, 5, 19))


def adapt(name, family, backbone):
    """A method on a family, as the table has it."""
    method = parsed(OF_FAMILY.get((name, family), TEXTS[name]), backbone.config)
    if family == "CLIP" and not method.names:
        methods.check_rows(method)
    backbone, head = subject(name, family, backbone)
    model = Headed(backbone.model, head, "head") if head else backbone.model
    base = backbone.params | backbone.state
    return method, methods.adapt(method, model, base, backbone.config.inputs)


def batch_of(family, backbone, rows=8, pairs=False):
    """Labelled examples, or pairs."""
    rng = np.random.default_rng(2)
    labels = np.arange(rows) % CLASSES

    def of(name, example):
        shape = (rows, *example.shape[1:])
        if name == "pixel_values":
            return np.float32(rng.random(shape) + labels.reshape(-1, *[1] * (len(shape) - 1)))
        return {"attention_mask": np.ones, "token_type_ids": np.zeros}.get(name, lambda s, dtype: None)(
            (rows, WORDS), np.int32
        )

    inputs = {name: of(name, example) for name, example in backbone.config.inputs.items()}
    words = rng.integers(3, 20, (rows, WORDS))
    words[:, 1] = 3 + labels
    words[:, -1] = 19  # CLIP's end of text is the largest id
    known = {"position_ids": np.tile(np.arange(WORDS, dtype=np.int32), (rows, 1))}
    if family == "ELMo":  # whose words are read by their characters, here one each
        known["input_ids"] = np.pad(np.int32(words)[..., None], ((0, 0), (0, 0), (0, LETTERS - 1)))
    inputs = {name: known.get(name, np.int32(words)) if x is None else x for name, x in inputs.items()}
    one_hot = np.float32(np.eye(CLASSES)[labels])
    if pairs:
        return {"inputs": inputs}
    others = {name: np.float32(rng.random((rows, *x.shape[1:]))) for name, x in parts_of(backbone.config).items()}
    return others | {"inputs": inputs, "labels": labels, "teacher": 3 * one_hot}


def trained(adapted, objective, base, batch):
    """All leaves before and after some steps on one batch, and the losses."""
    tree, others = jax.jit(adapted.start)(jax.random.key(0), base)
    beside, steps = held(adapted, base), plan(len(adapted.phases), STEPS)
    state, losses = None, []
    for number, phase in enumerate(adapted.phases):
        optimiser = Optimiser(rate=3e-3, schedule="constant", warmup=0).build(
            phase.rates, steps.steps[number], since=phase.since
        )
        if state is None:
            trainable, frozen = partition(tree, phase.rates)
            frozen |= phase.begun(trainable)
            state = TrainState.create(jax.random.key(1), trainable, others, optimiser)
        else:
            state, kept, frozen = entered(adapted, number, state, frozen, optimiser)
            frozen = merge(kept, frozen)
        step = jax.jit(make_step(make_loss(phase.model, objective, phase.scores), optimiser))
        for _ in range(steps.steps[number]):
            state, metrics = step(state, now(frozen) | beside, batch)
            losses.append(float(metrics["loss"]))
    return tree, phase.ended(state.trainable, frozen), state.state, losses


def run(name, family, backbone, directory):
    """One cell: learn, look at what moved, save, load, compare."""
    method, adapted = adapt(name, family, backbone)
    backbone, head = subject(name, family, backbone)
    objective, batch = classification() if head else clip(), batch_of(family, backbone, pairs=not head)
    rng = np.random.default_rng(3)
    solved = {path: np.float32(rng.normal(size=adapted.shapes[path].shape)) for path in adapted.solved}
    before, after, state, losses = trained(adapted, objective, adapted.base | solved, batch)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    moved = {path for path, leaf in after.items() if (leaf != before[path]).any()}
    learns = {path for path, rate in adapted.rates.items() if rate != FROZEN}
    assert moved <= learns and moved, "no leaf moved but those that are declared"
    # What has no gradient stays, as the key's bias of attention.
    assert len(moved) >= 0.7 * len(learns)

    known = backbone.params | backbone.state
    params = {path: x for path, x in (after | state).items() if path not in known or path in learns or path in state}
    adapter = Adapter(backbone, method, params, head, ("a", "b", "c") if head else ())
    deltas.check(adapter)
    deltas.save(directory, adapter, {})
    again = jt.load(str(directory))
    wanted, found = adapter(batch["inputs"]), again(batch["inputs"])
    for output in ["logits"] if head else ["image_embeds", "text_embeds"]:
        np.testing.assert_allclose(found[output], wanted[output], atol=1e-5)


@pytest.mark.parametrize(("name", "family"), QUICK)
def test_a_method_learns_moves_what_it_declares_and_is_kept(name, family, backbones, tmp_path):
    run(name, family, backbones(family), tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [cell for cell in CELLS if cell not in QUICK])
def test_every_cell(name, family, backbones, tmp_path):
    try:
        adapt(name, family, backbones(family))
    except InputError as error:
        pytest.skip(str(error))
    run(name, family, backbones(family), tmp_path / "kept")


def test_every_method_and_family_is_in_the_table_of_the_docs():
    assert TEXTS.keys() == methods.METHODS.keys()
    table = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert f"| method | {' | '.join(FAMILIES)} |" in table
    for text in TEXTS.values():
        assert "| `{}` |".format(text.replace("|", r"\|")) in table


@pytest.mark.slow
def test_the_table_of_methods_and_families_is_the_one_in_the_docs(backbones):
    reasons: dict[str, int] = {}

    def cell(name, family):
        try:
            adapt(name, family, backbones(family))
        except InputError as error:
            reason = re.split(r"; there are", str(error))[0]
            return f"– [{reasons.setdefault(reason, len(reasons) + 1)}]"
        other = OF_FAMILY.get((name, family))
        return f"`{other}`".replace("|", r"\|") if other else "yes"

    lines = [["method", *FAMILIES], ["---"] * (1 + len(FAMILIES))]
    lines += [
        [f"`{text}`".replace("|", r"\|"), *(cell(name, family) for family in FAMILIES)] for name, text in TEXTS.items()
    ]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    table += "\n" + "".join(f"{number}. {reason}\n" for reason, number in reasons.items())
    head, _, rest = DOCS.read_text().partition(BEGIN)
    before, _, tail = rest.partition(END)
    if os.environ.get("UPDATE_DOCS"):
        DOCS.write_text(head + BEGIN + table + END + tail)
    else:
        assert before == table


ALONE = "frozen_norm", "prompt", "scalar_mix"
ON_VIT = [name for name, text in TEXTS.items() if name not in ALONE and not methods.parse(text).names]


def on_vit(name, **options):
    """A method on a ViT of some options, its leaves at the start, and a batch."""
    backbone = models.build("vit", **VIT | options)
    base = jax.jit(lambda key: complete(backbone, key, {}, backbone.config.inputs))(jax.random.key(1))
    base = with_head(Backbone("ViT", backbone, base)).params
    method = parsed(TEXTS[name], backbone.config)
    adapted = methods.adapt(method, Classifier(backbone, CLASSES), base, backbone.config.inputs).phases[-1]
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), adapted.base)
    return adapted, tree, batch_of("ViT", Backbone("ViT", backbone, base))


def one_step(adapted, tree, batch, place=lambda x: x):
    """The trainable leaves after one step, and the loss."""
    optimiser = Optimiser("sgd", rate=0.1, schedule="constant", warmup=0).build(adapted.rates, 1)
    trainable, frozen = partition(tree, adapted.rates)
    frozen |= held(adapted, tree)
    state = TrainState.create(jax.random.key(1), trainable, {}, optimiser)
    step = jax.jit(make_step(make_loss(adapted.model, classification(), adapted.scores), optimiser))
    state, metrics = step(*place((state, frozen, batch)))
    return jax.device_get(state.trainable), float(metrics["loss"])


QUICKLY = ("lora",)


def marked(names):
    return [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", marked(ON_VIT))
def test_recomputed_blocks_give_the_same_step(name):
    (plain, loss), (again, other) = (one_step(*on_vit(name, remat=remat)) for remat in (False, True))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for path, leaf in plain.items():
        np.testing.assert_allclose(again[path], leaf, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", marked(ON_VIT))
def test_in_half_precision_what_learns_stays_in_float32_and_comes_near(name):
    (_, loss), (half, other) = (one_step(*on_vit(name, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert {leaf.dtype for leaf in half.values()} == {np.dtype("float32")}
    assert abs(other - loss) < 0.05 * abs(loss)
    assert all(np.isfinite(leaf).all() for leaf in half.values())


@pytest.mark.parametrize("name", marked(ON_VIT))
def test_eight_devices_take_the_step_that_one_takes(name):
    adapted, tree, batch = on_vit(name)
    alone, loss = one_step(adapted, tree, batch)
    mesh = sharding.make_mesh({"data": -1})
    for how in ("replicated", "fsdp"):
        leaves = sharding.tree_shardings(adapted.shapes, mesh, how)

        def place(arguments, leaves=leaves):
            laid_out = lay_out(jax.eval_shape(lambda: arguments), leaves, mesh)
            return jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), arguments, laid_out)

        several, other = one_step(adapted, tree, batch, place)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        for path, leaf in alone.items():
            np.testing.assert_allclose(several[path], leaf, atol=1e-5, err_msg=f"{how}: {path}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_VIT)
def test_trials_side_by_side_are_those_of_one_alone(name, backbones):
    backbone, steps = backbones("ViT"), 4
    _, adapted = adapt(name, "ViT", backbone)
    batch = batch_of("ViT", backbone)
    trial = make_trial(adapted, classification(), Optimiser("sgd", warmup=0), plan(len(adapted.phases), steps))
    rows = TrialData(np.tile(np.arange(8), (steps, 1)), np.arange(8), np.ones(8, np.float32))
    keys = jax.random.split(jax.random.key(0), 2)
    hyper = {"rate": np.float32([0.01, 0.03]), "decay": np.zeros(2, np.float32)}
    each = jax.vmap(jax.vmap(trial, (None, 0, None, None, None)), (0, None, None, None, None))
    base = adapted.base | {path: np.full(x.shape, 1e-3, np.float32) for path, x in adapted.told.items()}
    together = jax.jit(each)(keys, hyper, base, batch, rows)
    alone = jax.jit(trial)(keys[1], {key: x[1] for key, x in hyper.items()}, base, batch, rows)
    np.testing.assert_allclose(together.losses[1, 1], alone.losses, rtol=1e-4, atol=1e-5)
