"""Two cores, eight simulated devices, no network: what every test may rely on."""

import io
import json
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
# Eight simulated devices, and half the time to compile: what the tests compute is small.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtransfer import models
from jtransfer.tree import flat


def pytest_make_parametrize_id(val):
    """A short id for a long parameter: pytest keeps the id of a test many times over, and exports it to the process."""
    if isinstance(val, str | bytes) and len(val) > 100:
        return f"{val[:40]!r} and so on, {len(val)} in all"


@pytest.fixture(autouse=True, scope="module")
def _forget():
    """Drop what a file of tests has compiled: a process that keeps thousands of programs gets ten times slower."""
    yield
    jax.clear_caches()


TINY = {"image": (8, 8), "channels": 1, "patch": 4, "width": 16, "depth": 2, "heads": 2, "pool": "mean"}


@pytest.fixture(scope="session")
def vit():
    """A ViT of two blocks on 8x8 images."""
    return models.build("vit", **TINY)


@pytest.fixture(scope="session")
def backbone(vit):
    """Leaves of that ViT, all of them away from their initial values, with a source head of 5 classes."""
    model = models.Classifier(vit, 5, "source_head")
    tree = flat(jax.jit(model.init)(jax.random.key(7), jnp.zeros((1, 8, 8, 1)))["params"])
    rng = np.random.default_rng(0)
    return {path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in tree.items()}


@pytest.fixture(scope="session")
def images():
    """48 images of 8x8 and labels of three classes that their brightness tells."""
    rng = np.random.default_rng(1)
    labels = np.arange(48) % 3
    return (rng.random((48, 8, 8, 1)) * (1 + labels[:, None, None, None])).astype(np.float32) / 3, labels.astype(
        np.int32
    )


@pytest.fixture(scope="session")
def prepare_dataset():
    """`prepare(root, name, features, splits, supervised=None)`: what TFDS leaves when it prepares a dataset.

    `features(tfds.features)` gives the features; `splits` are lists of examples, images among them as `png(array)`.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    writer = pytest.importorskip("array_record.python.array_record_module")

    def prepare(root, name, features, splits, supervised=None, version="1.0.0"):
        directory, short = root / name / version, name.split("/")[0]
        directory.mkdir(parents=True)
        spec = tfds.features.FeaturesDict(features(tfds.features))
        spec.save_config(str(directory))
        info = {"name": short, "version": version, "fileFormat": "array_record", "splits": []}
        for split, examples in splits.items():
            records = [spec.serialize_example(spec.encode_example(example)) for example in examples]
            file = writer.ArrayRecordWriter(str(directory / f"{short}-{split}.array_record-00000-of-00001"))
            for record in records:
                file.write(record)
            file.close()
            of_split = {"name": split, "shardLengths": [str(len(records))], "numBytes": str(sum(map(len, records)))}
            template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            info["splits"].append(of_split | {"filepathTemplate": template})
        if supervised:
            info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
        (directory / "dataset_info.json").write_text(json.dumps(info))

    return prepare


@pytest.fixture(scope="session")
def png():
    """From uint8 arrays [height, width, 3] or [height, width] to files."""
    from PIL import Image

    def encode(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return io.BytesIO(file.getvalue())

    return encode


@pytest.fixture(scope="session")
def captioned(prepare_dataset, png, tmp_path_factory):
    """Prepared datasets with captions: `things` to train and test on, and `alike` and `silent`, which teach nothing."""
    root, rng = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)

    def features(f):
        return {
            "image": f.Image(shape=(8, 8, 3)),
            "name": f.Text(),
            "words": f.Text(),
            "kind": f.ClassLabel(num_classes=2),
        }

    def some(count, name="thing {}", words="of shape {}"):
        picture = [rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(count)]
        return [
            {"image": png(picture[i]), "name": name.format(i), "words": words.format(i), "kind": i % 2}
            for i in range(count)
        ]

    prepare_dataset(root, "things", features, {"train": some(12), "test": some(4)})
    prepare_dataset(root, "alike", features, {"train": some(4, "a", "a"), "test": some(4)})
    prepare_dataset(root, "silent", features, {"train": some(3) + some(1, " ", ""), "test": some(4)})
    return str(root)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "plot", "very", "not", "the", "a", "was")


@pytest.fixture(scope="session")
def reviews(prepare_dataset, tmp_path_factory):
    """A directory with the prepared dataset `reviews`: 20 to train on and 10 to test on, of one word and up to five."""
    root, rng = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)

    def some(count):
        texts = [" ".join(rng.choice(WORDS[7:], rng.integers(0, 5))) for _ in range(count)]
        return [{"text": f"{texts[i]} {WORDS[5 + i % 2]}", "label": i % 2} for i in range(count)]

    def features(f):
        return {"text": f.Text(), "label": f.ClassLabel(names=["yes", "no"])}

    prepare_dataset(root, "reviews", features, {"train": some(20), "test": some(10)}, ("text", "label"))
    return str(root)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A checkpoint of Hugging Face's BERT with random weights, one block, 40 positions and a vocabulary of `WORDS`."""
    from safetensors.numpy import save_file

    from jtransfer.checkpoints.families import FAMILIES
    from jtransfer.models.bert import BertConfig

    directory = tmp_path_factory.mktemp("bert")
    config = BertConfig(vocabulary=len(WORDS), positions=40, width=16, depth=1, heads=2)
    tree = jax.jit(lambda key: models.complete(models.of_config(config), key, {}, config.inputs))(jax.random.key(0))
    save_file(FAMILIES["bert"].names(config, "").write(tree), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(FAMILIES["bert"].write(config)))
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return str(directory)


@pytest.fixture(scope="session")
def randomised():
    """`randomised(torch module)`, in evaluation mode: no norm, scale or bias hides behind its ones or zeros."""
    torch = pytest.importorskip("torch")

    def randomise(peer):
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                parameter.normal_(1.0 if re.search(r"norm\w*\.weight|lambda", name) else 0.0, 0.2)
        return peer.eval()

    return randomise
