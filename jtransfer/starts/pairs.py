"""What a dual encoder for pairs starts from: a checkpoint, towers of other checkpoints, or random leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jtransfer.checkpoints.backbone import Backbone, load
from jtransfer.checkpoints.beside import tokenizer_files
from jtransfer.data import images, text
from jtransfer.data.pairs import PairStream
from jtransfer.errors import InputError
from jtransfer.models import STATISTICS, build
from jtransfer.models.clip import INPUTS, TOWERS
from jtransfer.starts import vocabularies
from jtransfer.starts.inputs import OF_ONE, Arrays, Pictures, as_they_are, gathered, options_of, through
from jtransfer.starts.start import Start
from jtransfer.tree import Tree, prefixed


@dataclass(frozen=True)
class PairInputs:
    """Makes the inputs of a dual encoder of images and texts.

    Attributes:
        images: Makes the inputs of images, or of cached features of images.
        crops: Makes the inputs of images to train on, which may have been cropped.
        texts: Makes the inputs of n texts, and tells which of these, `[n]`, were cut to the length of the inputs.
    """

    images: Pictures
    crops: Pictures
    texts: Callable[[list[str]], tuple[Arrays, np.ndarray]]

    def prepare(self, inputs: Mapping[str, Any]) -> Arrays:
        """The model's inputs from `{"images": by rows, "texts": a list}`, in which one of the two may be missing."""
        images = _whole(self.images, inputs["images"]) if "images" in inputs else {}
        return images | (self.texts(inputs["texts"])[0] if "texts" in inputs else {})

    def ready(self, batch: Mapping[str, Any], make: Callable[[Any], Arrays] | None = None) -> dict[str, Any]:
        """The batch that the loss takes, `{"inputs": by name, "cut": [n]}`, from images and texts to train on.

        Args:
            batch: `{"images": by rows, "texts": a list}`.
            make: Makes the inputs of images in place of `crops`.
        """
        texts, cut = self.texts(batch["texts"])
        images = make(batch["images"]) if make else _whole(self.crops, batch["images"])
        return {"inputs": images | texts, "cut": cut}


def _whole(prepare, images):
    return gathered(prepare, images, np.arange(len(images)))


def start(
    stream: PairStream,
    objective: str,
    *,
    backbone: str,
    towers: Mapping[str, str],
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    tokenizer: str,
    crop: bool,
) -> tuple[Start, PairInputs]:
    """A dual encoder for a stream of pairs: a checkpoint, towers of other checkpoints, or random leaves.

    Args:
        stream: The pairs.
        objective: What is learned, as the config writes it.
        backbone: Name of a checkpoint of a dual encoder; empty for none.
        towers: Name of a checkpoint for each of "vision" and "text"; empty for none.
        model: The architecture and its options, where there is no `backbone`.
        options: The section `load` of the config.
        preprocessor: How images are made, in Hugging Face's keys; empty for the checkpoint's own way.
        tokenizer: The tokenizer, as `vocabularies.files` takes it; empty for the checkpoint's own.
        crop: Whether images are cropped to train on.

    Returns:
        The start, and what makes the model's inputs.

    Raises:
        InputError: a backbone and a tower are both named, a backbone or architecture has one tower only, towers or
            images do not fit, a tower runs under a method, "siglip" has no bias, or the tokenizer has more tokens than
            the model has words or gives longer texts than the model takes.
    """
    whole = load(backbone, **options_of(options), sharding="host") if backbone else None
    named = {name: towers[name] for name in TOWERS if towers[name]}
    if whole and named:
        raise InputError("config.towers and config.backbone: expected one of the two, there are both")
    if len(named) > 1 and (of_one := [key for key in OF_ONE if options.get(key)]):
        raise InputError(f"config.load.{of_one[0]} is of one checkpoint, config.towers names two; leave it out")
    each = {name: _tower(name, one, options) for name, one in named.items()}
    if whole is None:
        values = {**model, **{name: one.config for name, one in each.items()}}
        module = build(**{key: dict(value) if hasattr(value, "items") else value for key, value in values.items()})
    else:
        module = whole.model
    if not module.config.towers:
        what = f"backbone '{backbone}'" if whole else f"architecture '{model['architecture']}'"
        raise InputError(f"config.objective '{objective}' needs towers of both images and texts; {what} has not")
    if objective == "siglip" and module.config.logit_bias is None:
        advice = "set config.model.logit_bias, which starts at -10.0, and config.model.logit_scale, at 2.3026 (ln 10)"
        if whole:
            advice = f"backbone '{backbone}' has none; train it with config.objective 'clip'"
        raise InputError(f"config.objective 'siglip' needs a bias; {advice}")
    params = {} if whole is None else whole.params | whole.state
    for name, one in each.items():
        params |= of_tower(one.params | one.state, name)
    missing = [name for name in TOWERS if name not in each]
    starts = [
        *(prefix + name for prefix in ("", STATISTICS) for name in missing),
        *(f"{name}_projection" for name in TOWERS),
    ]
    fresh = () if whole else (*(f"{start}/" for start in starts), "logit_")
    to_pixels, of_crops, values = _images(preprocessor, crop, stream, module, whole or each.get("vision"))
    to_ids, files = _texts(tokenizer, options["tokens"], module, whole or each.get("text"))
    fingerprints = {"backbone": whole.fingerprint} if whole else {}
    fingerprints |= {name: one.fingerprint for name, one in each.items()}
    about = {"backbone": whole, "fingerprints": fingerprints, "preprocessor": values, "tokenizer": files}
    return Start(module, module, params, fresh, **about), PairInputs(to_pixels, of_crops, to_ids)


def of_tower(tree: Tree, name: str) -> Tree:
    """The leaves of a tower under the paths that they have in the tree of both towers.

    {"norm/scale": x, "batch_stats/norm/mean": y}  ->  {"vision/norm/scale": x, "batch_stats/vision/norm/mean": y}
    """
    statistics = {path for path in tree if path.startswith(STATISTICS)}
    own = prefixed({path: leaf for path, leaf in tree.items() if path not in statistics}, f"{name}/")
    return own | {path.replace(STATISTICS, f"{STATISTICS}{name}/", 1): tree[path] for path in statistics}


def _tower(name, of, options) -> Backbone:
    """The tower for images or texts of a backbone, or the backbone, which is one, without a head."""
    options = {
        key: value
        for key, value in options_of(options).items()
        if name == "vision" or key in ("dtype", "bits", "remat", "trust", *OF_ONE)
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


def _images(preprocessor, crop, stream, module, source):
    """What makes `pixel_values` of images, what makes them of crops, and how in Hugging Face's keys."""
    shape = module.config.vision.inputs["pixel_values"].shape[1:]
    if len(shape) != 3:
        raise InputError("a tower of images of any sides (NaFlex) is not trained on pairs; take one of a fixed size")
    values = dict(preprocessor)
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
    return pixels, pixels.of_parts if crop else pixels, processor.values


def _kept(source):
    """The values of a checkpoint's own processor, if it has one."""
    own = source.origin and source.origin.layout == "jtransfer" and not source.origin.values.get("preprocessor")
    if own or source.origin is None:
        return {}
    tower = source.tower("vision") if source.config.towers else source
    return dict(tower.preprocess.values)


def _texts(name, tokens, module, source):
    """What makes `input_ids` and says which texts are cut, and the files of the tokenizer."""
    own = module.config.text
    files = tokenizer_files(source) if source and not name else vocabularies.files(name or vocabularies.BYTES)
    names, longest = tuple(module.config.inputs), own.longest
    made: text.Tokenizer = vocabularies.tokenizer(files, names, longest, own.pool == "last")
    count = max(made.words().values()) + 1
    if count > own.vocabulary:
        raise InputError(f"config.tokenizer has {count} tokens, config.model.text.vocabulary is {own.vocabulary}")
    ((ids, *_),) = made.encode(["a"], None, made.limit)
    if own.pool == "eos" and own.eos_token not in ids:
        raise InputError(f"config.tokenizer ends texts with {ids[-1]}, config.model.text.eos_token is {own.eos_token}")
    length = tokens or made.limit
    if length > made.limit:
        raise InputError(f"config.load.tokens is {length}; the text tower takes {made.limit} at most")

    def read_texts(texts):
        arrays, cut = made.read(texts, length=length)
        made.warn(cut)
        return arrays, cut

    return read_texts, files
