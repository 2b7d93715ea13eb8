"""Write the images of a prepared dataset in several forms, and check that all of them give the same batches.

python experiments/streaming/forms.py --data_dir=TFDS_DIRECTORY --out=DIRECTORY

`out/tfds` holds ArrayRecord files, which are read as a prepared dataset and by themselves, `out/folder` a file for each
image and `out/tar` tar files of 2,000 images. Images are copied as they are coded, and rows are ordered by split, class
and number in the dataset, as a folder lists them.
"""

import argparse
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np

from jtransfer.data import sources, streams

NAME, SHARD = "cifar10", 2000
AUGMENT = ("random_crop(32, 4)", "flip", "randaugment(2, 9)")


def main():
    """Write the forms, and compare the batches of some steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where the prepared cifar10 lies")
    parser.add_argument("--out", required=True, type=Path, help="where the forms go")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 195, 1000], help="that are compared")
    given = parser.parse_args()
    places = write(Path(given.data_dir), given.out)
    given_by = {name: opened(name, str(given.out / "tfds"), given.batch) for name in places}
    for step in given.steps:
        batches = [next(stream.batches(step))[0] for stream in given_by.values()]
        pictures = [np.stack(batch["inputs"][np.arange(given.batch)]) for batch in batches]
        for name, own, batch in zip(places, pictures, batches, strict=True):
            np.testing.assert_array_equal(own, pictures[0], err_msg=f"{name}, step {step}")
            np.testing.assert_array_equal(batch["labels"], batches[0]["labels"], err_msg=f"{name}, step {step}")
        forms = ", ".join(name.split(":")[0] for name in places)
        print(f"step {step}: {given.batch} images and labels are equal in {forms}")


def opened(name: str, data_dir: str, batch: int) -> streams.Stream:
    """The stream that a training on a form reads, augmented."""
    return sources.open_stream(name, batch, 0, np.arange(batch), data_dir, augment=AUGMENT)


def write(data_dir: Path, out: Path) -> list[str]:
    """Write the forms; returns the name of each, as `config.data` takes it."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    (prepared,) = sorted((data_dir / NAME).glob("*/dataset_info.json"))
    builder = tfds.builder_from_directory(str(prepared.parent))
    names, features = builder.info.features["label"].names, builder.info.features
    copied = out / "tfds" / NAME / prepared.parent.name
    copied.mkdir(parents=True, exist_ok=True)
    for file in prepared.parent.iterdir():
        if "array_record" not in file.name:
            shutil.copyfile(file, copied / file.name)
    for split in ("train", "test"):
        (part,) = (Path(one.filename) for one in builder.info.splits[split].file_instructions)
        reader = ArrayRecordReader(str(part))
        records = reader.read_all()
        coded = {"image": tfds.decode.SkipDecoding()}
        parsed = [features.deserialize_example_np(record, decoders=coded) for record in records]
        order = sorted(range(len(records)), key=lambda i: (names[int(parsed[i]["label"])], i))
        writer = ArrayRecordWriter(str(copied / part.name), "group_size:1")
        for i in order:
            writer.write(records[i])
        writer.close()
        shards = out / "tar" / split
        shards.mkdir(parents=True, exist_ok=True)
        (shards / "classes.txt").write_text("\n".join(names))
        for start in range(0, len(order), SHARD):
            with tarfile.open(shards / f"{start // SHARD:05d}.tar", "w") as tar:
                for row in range(start, min(start + SHARD, len(order))):
                    image, label = parsed[order[row]]["image"], int(parsed[order[row]]["label"])
                    ending = "png" if image.startswith(b"\x89PNG") else "jpg"
                    file = out / "folder" / split / names[label] / f"{row:06d}.{ending}"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(image)
                    for key, value in {ending: image, "cls": str(label).encode()}.items():
                        about = tarfile.TarInfo(f"{row:06d}.{key}")
                        about.size = len(value)
                        tar.addfile(about, io.BytesIO(value))
    (copied / "classes.txt").write_text("\n".join(names))
    train, test = (next(copied.glob(f"{NAME}-{split}.array_record*")) for split in ("train", "test"))
    return [
        f"tfds:{NAME}",
        f"array_record:{train}?test={test}&input=image&label=label",
        f"folder:{out / 'folder'}",
        f"tar:{out / 'tar' / 'train'}?test={out / 'tar' / 'test'}",
    ]


if __name__ == "__main__":
    main()
