"""Where a dual encoder starts that is trained on pairs: a checkpoint, towers of other checkpoints, or at random."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jtransfer.checkpoints.backbone import Backbone, load
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data import images, text
from jtransfer.data.pairs import PairStream
from jtransfer.errors import InputError
from jtransfer.models import STATISTICS, apply, build, of_config
from jtransfer.models.clip import INPUTS, TOWERS
from jtransfer.starts import vocabularies
from jtransfer.starts.inputs import Arrays, Pictures, as_they_are, gathered, options_of, through, within
from jtransfer.tree import FROZEN, Tree, prefixed, select


@dataclass(frozen=True)
class Start:
    """A dual encoder before its first step.

    Attributes:
        module: The model.
        params: Leaves that it starts from.
        fresh: What the paths of the others begin with.
        images: Makes the model's inputs of images, or of what is known of them.
        crops: Makes them of images to train on, which may have been cropped.
        texts: Makes them of texts, and says which of these `[n]` are longer than what the model is given.
        backbone: The checkpoint of the whole; None where there is none.
        fingerprints: Of the weights.
        preprocessor: How images are made, in Hugging Face's keys; None where they are taken as they are.
        tokenizer: Its files.
    """

    module: nn.Module
    params: Tree
    fresh: tuple[str, ...]
    images: Pictures
    crops: Pictures
    texts: Callable[[list[str]], tuple[Arrays, np.ndarray]]
    backbone: Backbone | None
    fingerprints: dict[str, str]
    preprocessor: Mapping[str, Any] | None
    tokenizer: dict[str, bytes]

    def prepare(self, inputs: Mapping[str, Any]) -> Arrays:
        """The model's inputs of `{"images": by rows, "texts": a list}`, of which one may be left out."""
        images = _whole(self.images, inputs["images"]) if "images" in inputs else {}
        return images | (self.texts(inputs["texts"])[0] if "texts" in inputs else {})

    def ready(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the loss takes of both, to train on."""
        texts, cut = self.texts(batch["texts"])
        return {"inputs": _whole(self.crops, batch["images"]) | texts, "cut": cut}


def _whole(prepare, images):
    return gathered(prepare, images, np.arange(len(images)))


def start(config: Any, stream: Any) -> Start:
    """The dual encoder of a config's `backbone`, `towers` and `model`, for a stream of pairs.

    Raises:
        InputError: a backbone or architecture with one tower only, towers or images that do not fit, a loss without
            its bias, or a vocabulary of another size than the tokenizer's.
    """
    whole = load(config.backbone, **options_of(config.load), sharding="host") if config.backbone else None
    named = {name: config.towers[name] for name in TOWERS if config.towers[name]}
    if whole and named:
        raise InputError("config.towers and config.backbone: expected one of the two, there are both")
    towers = {name: _tower(name, one, config.load) for name, one in named.items()}
    if whole is None:
        model = {**config.model, **{name: one.config for name, one in towers.items()}}
        module = build(**{key: dict(value) if hasattr(value, "items") else value for key, value in model.items()})
    else:
        module = whole.model
    if not module.config.towers:
        what = f"backbone '{config.backbone}'" if whole else f"architecture '{config.model.architecture}'"
        raise InputError(f"config.objective '{config.objective}' needs towers of both images and texts; {what} has not")
    if config.objective == "siglip" and module.config.logit_bias is None:
        advice = "set config.model.logit_bias, which starts at -10.0, and config.model.logit_scale, at 2.3026 (ln 10)"
        if whole:
            advice = f"backbone '{config.backbone}' has none; train it with config.objective 'clip'"
        raise InputError(f"config.objective 'siglip' needs a bias; {advice}")
    params = {} if whole is None else whole.params | whole.state
    for name, one in towers.items():
        params |= of_tower(one.params | one.state, name)
    missing = [name for name in TOWERS if name not in towers]
    starts = [
        *(prefix + name for prefix in ("", STATISTICS) for name in missing),
        *(f"{name}_projection" for name in TOWERS),
    ]
    fresh = () if whole else (*(f"{start}/" for start in starts), "logit_")
    source = whole or towers.get("vision")
    to_pixels, of_crops, preprocessor = _images(config, stream, module, source)
    to_ids, files = _texts(config, module, whole or towers.get("text"))
    fingerprints = {"backbone": whole.fingerprint} if whole else {}
    fingerprints |= {name: one.fingerprint for name, one in towers.items()}
    return Start(module, params, fresh, to_pixels, of_crops, to_ids, whole, fingerprints, preprocessor, files)


def cached(start: Start, stream: PairStream, rates: Mapping[str, float]) -> tuple[Start, PairStream, Tree]:
    """The same with the features of the tower of images, which then does not learn, in place of the images.

    They are computed once, of all rows, and held in memory: `rows x width` floats.

    Args:
        start: Where the dual encoder starts; its tower of images has all of its leaves.
        stream: Of a finite number of images.
        rates: At which the leaves learn, by path.

    Returns:
        Start and stream over features, and the leaves of the tower that is left out.

    Raises:
        InputError: images that are made as they are needed, or a tower that starts at random or learns.
    """
    if stream.over is None:
        raise InputError(f"config.cache: the images of {stream.name} are made anew in every step; nothing can be kept")
    if any(prefix.startswith("vision/") for prefix in start.fresh) or not start.params:
        raise InputError("config.cache: the tower of images starts at random; name one in config.towers.vision")
    if start.backbone and start.backbone.methods:
        raise InputError(
            f"config.cache: backbone '{start.backbone.name}' runs under a method, whose parts it leaves out"
        )
    if learns := [path for path, rate in rates.items() if rate != FROZEN and path.startswith("vision/")]:
        raise InputError(
            f"config.cache keeps features of a tower that does not learn; config.method trains {learns[0]}"
        )
    inside = "vision/", f"{STATISTICS}vision/"
    tower = {path: x for path, x in start.params.items() if path.startswith(inside)}
    call = jax.jit(lambda tree, pixels: apply(of_config(start.module.config.vision), tree, pixels)["features"])
    own = select(tower, inside[0]) | prefixed(select(tower, inside[1]), STATISTICS)
    rows, block = np.arange(len(stream.images)), within(start.images(stream.images[np.arange(1)]))
    parts = np.split(rows, range(block, len(rows), block))
    found = [jax.device_get(call(own, gathered(start.images, stream.images, part))) for part in parts]
    features = np.concatenate(found)

    kept = Pictures(lambda rows: {"image_features": np.asarray(rows)})
    rest = {path: x for path, x in start.params.items() if path not in tower}
    return dataclasses.replace(start, params=rest, images=kept, crops=kept), stream.over(features), tower


def of_tower(tree: Tree, name: str) -> Tree:
    """The leaves of a tower as they lie in the tree of both."""
    statistics = {path for path in tree if path.startswith(STATISTICS)}
    own = prefixed({path: leaf for path, leaf in tree.items() if path not in statistics}, f"{name}/")
    return own | {path.replace(STATISTICS, f"{STATISTICS}{name}/", 1): tree[path] for path in statistics}


def _tower(name, of, options) -> Backbone:
    """The tower for images or texts of a backbone, or the backbone, which is one, without a head."""
    options = {
        key: value for key, value in options_of(options).items() if name == "vision" or key in ("dtype", "trust")
    }
    backbone = load(of, **options, sharding="host")
    if backbone.methods:
        text = backbone.methods[-1].text
        raise InputError(f"config.towers.{name}: backbone '{of}' runs under the method '{text}', which no tower can")
    if name in backbone.config.towers:
        return backbone.tower(name)
    if INPUTS[name] not in backbone.config.inputs:
        raise InputError(f"config.towers.{name}: backbone '{backbone.name}' takes {', '.join(backbone.config.inputs)}")
    return backbone.without_head()


def _images(config, stream, module, source):
    """What makes `pixel_values` of images, what makes them of crops, and how in Hugging Face's keys."""
    shape = module.config.vision.inputs["pixel_values"].shape[1:]
    values = dict(config.preprocessor)
    if source is not None and not values:
        values = _kept(source)
    array = not hasattr(stream.images, "read")
    if array and not values:
        own = as_they_are(module, stream)
        return own, own, images.plain(shape).values if shape[-1] in (1, 3) else None
    if not values:
        values = {"image_processor_type": "CLIPImageProcessor", "size": {"height": shape[0], "width": shape[1]}}
        values |= {"do_center_crop": False}
    processor = images.processor(values, "CLIPImageProcessor", shape)

    pixels = through(processor)
    square = dataclasses.replace(processor, steps=(images.Fixed(*shape[:2]),))
    return pixels, Pictures(square) if config.crop else pixels, processor.values


def _kept(source):
    """The values of a checkpoint's own processor, if it has one."""
    own = source.origin and source.origin.layout == "jtransfer" and not source.origin.values.get("preprocessor")
    if own or source.origin is None:
        return {}
    tower = source.tower("vision") if source.config.towers else source
    return dict(tower.preprocess.values)


def _texts(config, module, source):
    """What makes `input_ids` and says which texts are cut, and the files of the tokenizer."""
    own = module.config.text
    name = config.tokenizer
    files = tokenizer_files(source) if source and not name else vocabularies.files(name or vocabularies.BYTES)
    names, longest = tuple(module.config.inputs), own.longest
    made: text.Tokenizer = vocabularies.tokenizer(files, names, longest, own.pool == "last")
    count = max(made.words().values()) + 1
    if count > own.vocabulary:
        raise InputError(f"config.tokenizer has {count} tokens, config.model.text.vocabulary is {own.vocabulary}")
    ((ids, *_),) = made.encode(["a"], None, made.limit)
    if own.pool == "eos" and own.eos_token not in ids:
        raise InputError(f"config.tokenizer ends texts with {ids[-1]}, config.model.text.eos_token is {own.eos_token}")
    length = config.load.tokens or made.limit
    if length > made.limit:
        raise InputError(f"config.load.tokens is {length}; the text tower takes {made.limit} at most")

    def read_texts(texts):
        arrays, cut = made.read(texts, length=length)
        made.warn(cut)
        return arrays, cut

    return read_texts, files
