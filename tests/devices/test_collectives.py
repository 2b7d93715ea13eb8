"""What a program sends between devices: counted from its text, and no more than the textbook's for each tactic."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from jtransfer import methods, models
from jtransfer.devices import chips, sharding
from jtransfer.devices.collectives import Collective, by_kind, collectives
from jtransfer.errors import InputError
from jtransfer.models import layers
from jtransfer.objectives import classification
from jtransfer.optimiser import Optimiser
from jtransfer.train import costs
from jtransfer.train.state import lay_out
from jtransfer.tree import partition, size

TEXT = """HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %x)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %sent = (f32[4,8]{1,0:T(8,128)}, f32[4,8]{1,0:T(8,128)}, u32[], u32[]) collective-permute-start(%p), channel_id=1
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%p)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %at = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%at, %bound), direction=LT
}

%scatter (p: f32[16,8]) -> f32[2,8] {
  %all = f32[16,8]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %own = f32[2,8]{1,0} dynamic-slice(%all, %i, %z), dynamic_slice_sizes={2,8}
}

%start (p: bf16[2,8]) -> bf16[8,8] {
  %g = bf16[8,8]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %c = bf16[8,8]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[2,8]) -> bf16[8,8] {
  ROOT %g = bf16[8,8]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

%done (p: bf16[2,8]) -> bf16[8,8] {
  %g = bf16[8,8]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %c = bf16[8,8]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[4,8], b: pred[6]) -> f32[4,8] {
  %both = (f32[4,8]{1,0}, pred[6]{0}, f32[]) all-reduce(%a, %b, %c), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %alone = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %started = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%a), replica_groups={}, dimensions={0}
  %whole = f32[32,8]{1,0} all-gather-done(%started)
  %part = f32[1,8]{1,0} reduce-scatter(%a), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %turned = f32[4,8]{1,0} all-to-all(%a), replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, dimensions={0}
  %own = f32[2,8]{1,0} fusion(%q), kind=kCustom, calls=%scatter
  %f.0 = bf16[8,8]{1,0} fusion(%q), kind=kCustom, calls=%start
  %f.1 = bf16[8,8]{1,0} fusion(%q), kind=kOutput, calls=%async_collective_fusion.1
  %f.2 = bf16[8,8]{1,0} fusion(%q), kind=kCustom, calls=%done
  %known = (s32[]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %counted = (s32[]) while(%t), condition=%condition, body=%body
}
"""


def test_every_form_of_a_collective_is_read_with_its_bytes_its_group_and_its_loop():
    assert collectives(TEXT) == [
        Collective("all-reduce", 4 * 8 * 4 + 6 + 4, 4, 1),
        Collective("all-gather", 32 * 8 * 4, 8, 1),
        Collective("reduce-scatter", 4 * 8 * 4, 4, 1),
        Collective("all-to-all", 4 * 8 * 4, 4, 1),
        Collective("reduce-scatter", 16 * 8 * 4, 8, 1),
        Collective("all-gather", 8 * 8 * 2, 4, 1),
        Collective("collective-permute", 4 * 8 * 4, 2, 7),
        Collective("collective-permute", 4 * 8 * 4, 2, 5),
    ]


def test_what_a_device_sends_is_that_of_a_ring():
    sent = {kind: Collective(kind, 800, 4, 1).sent for kind in ("all-reduce", "all-gather", "reduce-scatter")}
    assert sent == {"all-reduce": 1200, "all-gather": 600, "reduce-scatter": 600}
    assert Collective("collective-permute", 800, 2, 3).sent == 2400
    assert by_kind(collectives(TEXT))["collective-permute"] == {"count": 12, "bytes": 12 * 128}


def of_step(axes, how, method="scratch", devices=None):
    """What a step of SGD of a ViT of two blocks on 32 images sends, the model, the mesh and the leaves that learn."""
    mesh = sharding.make_mesh(axes, devices)
    vit = models.build("vit", image=(32, 32), patch=4, width=256, depth=2, heads=4)
    base = {}
    if method != "scratch":
        shapes = jax.eval_shape(partial(models.complete, vit, tree={}, example=vit.config.inputs), jax.random.key(0))
        base = {path: np.broadcast_to(np.zeros((), np.float32), x.shape) for path, x in shapes.items()}
    with layers.compiling_for("tpu"):  # in whose forms the axes of activations stay apart
        wrap = (sharding.keep_batch_split(mesh),)
        model = models.Classifier(vit, 16)
        adapted = methods.adapt(methods.parse(method), model, base, vit.config.inputs, wrap)
        options = Optimiser(name="sgd", momentum=0.0, clip=0.0, decay=0.0)
        shapes = costs.step_shapes(adapted, classification(), options, 32)
        arguments = lay_out(shapes.arguments, sharding.tree_shardings(adapted.shapes, mesh, how), mesh)
        layout = jax.tree.map(lambda x: x.sharding, arguments[0]), sharding.everywhere(mesh)
        compiled = jax.jit(shapes.step, out_shardings=layout, donate_argnums=0).lower(*arguments).compile()
    return by_kind(collectives(compiled.as_text())), partition(adapted.shapes, adapted.rates)[0]


def total(found, *kinds):
    return sum(one["bytes"] for kind, one in found.items() if not kinds or kind in kinds)


@pytest.mark.parametrize("method", ["scratch", "lora(rank=4)"])
def test_data_parallelism_sends_one_sum_of_the_gradients_of_the_leaves_that_learn(method):
    found, trainable = of_step({"data": 8}, "replicated", method)
    assert found.keys() == {"all-reduce"}
    assert total(found) <= 1.02 * 2 * 7 / 8 * 4 * size(trainable)  # and the loss


TOKENS = 32 * 65 * 256 * 4
"""Bytes of the stream of all 32 images."""


def tpus():
    try:
        return chips.topology("v5e:2x4")[1]
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow  # 5 s for each compilation; XLA for CPUs gathers no weights twice, and scatters no sums
@pytest.mark.parametrize(("data", "parts"), [(1, 8), (2, 4)])
def test_fsdp_on_tpus_gathers_weights_forward_and_backward_and_scatters_gradients(data, parts):
    axes = {"data": data, "fsdp": parts} if data > 1 else {"data": 8}
    found, trainable = of_step(axes, "fsdp", devices=tpus())
    count = size(trainable)
    assert total(found, "all-gather") <= 1.1 * 2 * (parts - 1) / parts * 2 * count  # in bfloat16, as products take it
    scattered = (parts - 1) / parts * 4 * count
    summed = 2 * (data - 1) / data * 4 * count / parts
    assert total(found) - total(found, "all-gather") <= 1.1 * (scattered + summed)


@pytest.mark.slow
def test_tensor_parallelism_on_tpus_sums_the_stream_twice_a_block_forward_and_twice_backward():
    found, trainable = of_step({"data": 4, "tensor": 2}, "tensor", devices=tpus())
    split = {path: x for path, x in trainable.items() if re.search(r"block.*(kernel|(query|key|value|up)/bias)", path)}
    own = size(trainable) - size(split) / 2
    stream = 2 * (2 - 1) / 2 * TOKENS / 4
    assert found.keys() == {"all-reduce"}
    assert total(found) <= 1.1 * (2 * 4 * stream + 2 * 3 / 4 * 4 * own)


@pytest.mark.slow
def test_both_together_on_tpus_send_what_each_sends_alone():
    found, trainable = of_step({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor", devices=tpus())
    split = {path: x for path, x in trainable.items() if re.search(r"block.*(kernel|(query|key|value|up)/bias)", path)}
    own = size(trainable) - size(split) / 2
    stream = 2 * (2 - 1) / 2 * TOKENS / 4
    gathered, scattered, summed = 2 * 1 / 2 * 2 * own, 1 / 2 * 4 * own, 2 * 1 / 2 * 4 * own / 2
    assert total(found) <= 1.1 * (2 * 4 * stream + gathered + scattered + summed)


def test_a_slice_that_is_not_there_has_one_device_a_chip_and_a_wrong_one_is_one_line():
    pytest.importorskip("libtpu", reason="needs a compiler for TPUs: pip install -e '.[pod]'")
    for name, count in {"v5e:4x4": 16, "v4:2x2x2": 8, "v5p:2x2x2": 8, "v6e:2x4": 8}.items():
        assert len(chips.topology(name)[1]) == count
    refused = {
        "v5f:4x4": "unknown chip 'v5f'; did you mean 'v5",
        "v5e:4": "a slice of v5e has 2 sides; expected as in 'v5e:16x16'",
        "v5p:4x4": "a slice of v5p has 3 sides; expected as in 'v5p:4x4x8'",
        "v5e:3x5": 'layout "v5e:3x5" is not divisible',
    }
    for name, said in refused.items():
        with pytest.raises(InputError, match=re.escape(said)):
            chips.topology(name)


def test_without_a_compiler_for_tpus_the_way_to_one_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    with pytest.raises(InputError, match=re.escape("pip install 'jtransfer[pod]'")):
        chips.topology("v5e:4x4")
