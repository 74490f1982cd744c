"""Which copies of photos the duplicate search finds, how many different photos it confuses, and how long it takes.

`python -m benchmarks.duplicates copies --photos FOLDER`
`python -m benchmarks.duplicates scale`
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from benchmarks import common
from benchmarks.scale import report, timed
from spectacles.core.config import DatasetConfig
from spectacles.core.device import cpu_count, resolve_device
from spectacles.core.errors import UserError
from spectacles.data import duplicates, folders
from spectacles.data.file_index import inspect_files
from spectacles.data.images import SUFFIXES, ImageRejected, decode
from spectacles.data.similarity import cosines, prepare_features, similar_pairs
from spectacles.models import pretrained
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.torch_device import prepare_device

DISTANCE = 6
SIMILARITIES = (0.6, 0.5)
QUALITY = 85
DIM = 1280


def cut(photo: Image.Image, rng: np.random.Generator, share: float = 0.9) -> Image.Image:
    """A part with this share of each side, somewhere."""
    width, height = (round(share * side) for side in photo.size)
    left, top = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
    return photo.crop((left, top, left + width, top + height))


def marked(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A text in white, three fifths opaque, over the lower part."""
    mask = Image.new("L", photo.size)
    font = ImageFont.load_default(max(10, photo.height // 8))
    ImageDraw.Draw(mask).text((photo.width // 2, 3 * photo.height // 4), "SAMPLE PHOTO", 160, font, anchor="mm")
    return Image.composite(Image.new("RGB", photo.size, "white"), photo, mask)


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "half the size": lambda photo, _: photo.resize((max(1, photo.width // 2), max(1, photo.height // 2))),
    "JPEG quality 40": lambda photo, _: photo,
    "cropped by 10 %": cut,
    "mirrored": lambda photo, _: ImageOps.mirror(photo),
    "20 % brighter": lambda photo, _: ImageEnhance.Brightness(photo).enhance(1.2),
    "20 % darker": lambda photo, _: ImageEnhance.Brightness(photo).enhance(0.8),
    "watermarked": marked,
    "mirrored, cropped by 5 %": lambda photo, rng: ImageOps.mirror(cut(photo, rng, 0.95)),
    "grey": lambda photo, _: photo.convert("L"),
}


def copies(args: argparse.Namespace) -> None:
    """Share of planted copies that are paired with their original, and pairs among the originals, which are false where
    --persons names two different persons."""
    rng = np.random.default_rng(0)
    photos = [str(path) for path in folders.files_below(args.photos) if path.suffix.lower() in SUFFIXES]
    if not photos:
        raise UserError(f"--photos {args.photos} holds no photo.")
    photos = [photos[number] for number in rng.permutation(len(photos))[: args.images]]
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(photos[: args.copies], Path(folder), rng)
        table = measure(photos, planted, args, Path(folder))
    features = np.stack(table.pop("features").to_list())
    originals = np.flatnonzero(table["kind"] == "")
    recall = {}
    for kind in COPIES:
        rows = np.append(originals, np.flatnonzero(table["kind"] == kind))
        found = search(table.iloc[rows], features[rows])
        recall[kind] = {name: recalled(pairs, table.iloc[rows]) for name, pairs in found.items()}
    persons = read_persons(args.persons, table["path"].iloc[originals])
    among = search(table.iloc[originals], features[originals])
    pairs = {name: count_pairs(pairs, persons) for name, pairs in among.items()}
    print(pd.DataFrame(recall).T.rename_axis("share found").round(3).to_string(), end="\n\n")
    print(pd.DataFrame(pairs).rename_axis(f"pairs among {len(originals)} originals").to_string())
    if args.output:
        common.write_json(args.output, {"originals": len(originals), "recall": recall, "pairs": pairs})


def plant(photos: Sequence[str], folder: Path, rng: np.random.Generator) -> pd.DataFrame:
    """Columns path, kind and original: a JPEG of each kind for each photo."""
    rows = []
    for number, photo in enumerate(photos):
        try:
            image = decode(Path(photo)).image
        except ImageRejected:
            continue  # such an original is rejected as well
        for kind, change in COPIES.items():
            path = folder / f"{number}-{len(rows)}.jpg"
            change(image, rng).save(path, quality=40 if kind == "JPEG quality 40" else QUALITY)
            rows.append((str(path), kind, photo))
    return pd.DataFrame(rows, columns=["path", "kind", "original"])


def measure(photos: Sequence[str], planted: pd.DataFrame, args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Originals (kind '') and copies, with hashes and features; rejected files are left out."""
    originals = pd.DataFrame({"path": photos, "kind": "", "original": photos})
    table = pd.concat([originals, planted], ignore_index=True)
    facts, _, _ = inspect_files(table["path"].tolist(), cpu_count())
    table = pd.concat([table, facts[["sha256", "phash", "phash_mirrored"]]], axis=1)[facts["status"] != "rejected"]
    config = DatasetConfig(backbone=args.backbone, weights=args.weights, image_size=args.image_size)
    backbone, preprocessing = pretrained.frozen_backbone(config)
    device = prepare_device(resolve_device(args.device))
    cache = args.cache or folder / "cache"
    features = (
        FeatureExtractor(backbone, config.backbone, preprocessing, cache, device, config).embed_rows(table, None).last
    )
    return table.reset_index(drop=True).assign(features=list(features))


def search(table: pd.DataFrame, features: np.ndarray) -> dict[str, np.ndarray]:
    """Way of searching -> pairs (P, 2) of positions."""
    directions, cells = prepare_features(features)
    found = {f"hash {DISTANCE}": duplicates.find(table, None, DISTANCE, 1)[["a", "b"]].to_numpy()}
    for limit in SIMILARITIES:
        blocks = similar_pairs(directions, cells, limit)
        found[f"features {limit}"] = np.concatenate([np.empty((0, 2), dtype=np.int64), *blocks])
        found[f"both {limit}"] = duplicates.find(table, features, DISTANCE, limit)[["a", "b"]].to_numpy()
    return found


def recalled(pairs: np.ndarray, table: pd.DataFrame) -> float:
    """Share of the copies that are paired with their own original."""
    originals, kinds = table["original"].to_numpy(), table["kind"].to_numpy()
    own = pairs[(originals[pairs[:, 0]] == originals[pairs[:, 1]]) & (kinds[pairs[:, 0]] != kinds[pairs[:, 1]])]
    return len(np.unique(own, axis=0)) / max(1, int((kinds != "").sum()))


def read_persons(table: Path | None, paths: "pd.Series[str]") -> np.ndarray | None:
    if table is None:
        return None
    known = pd.read_csv(table, dtype=str).set_index("file")["person"]
    return known.reindex([Path(path).name for path in paths]).to_numpy()


def count_pairs(pairs: np.ndarray, persons: np.ndarray | None) -> dict[str, int]:
    pairs = np.unique(pairs, axis=0)
    if persons is None:
        return {"pairs": len(pairs)}
    same = int((persons[pairs[:, 0]] == persons[pairs[:, 1]]).sum())
    return {"one person": same, "two persons": len(pairs) - same}


def scale(args: argparse.Namespace) -> None:
    """Seconds, memory and recall of both searches among generated hashes and features, some of them copies."""
    rng = np.random.default_rng(0)
    copied = args.images // 50
    original = rng.permutation(args.images - copied)[:copied]
    copy = np.arange(args.images - copied, args.images)
    hashes = rng.integers(0, 2**64, args.images, dtype=np.uint64)
    hashes[copy] = hashes[original]
    for _ in range(DISTANCE):
        hashes[copy] ^= np.uint64(1) << rng.integers(0, 64, copied, dtype=np.uint64)
    blocks, hash_seconds = timed(lambda: list(duplicates.near_pairs(hashes, hashes, DISTANCE)))
    features = draw_features(args.images, original, copy, rng)
    (directions, cells), preparing = timed(lambda: prepare_features(features))
    planted = np.stack([original, copy], axis=1)
    planted = planted[cosines(directions, planted) >= SIMILARITIES[-1]]
    near, feature_seconds = timed(lambda: list(similar_pairs(directions, cells, SIMILARITIES[-1])))
    values: dict[str, object] = {
        "images": args.images,
        "hash_seconds": hash_seconds,
        "hash_recall": share_found(np.stack([original, copy], axis=1), blocks),
        "feature_seconds": {"prepare": preparing, "search": feature_seconds},
        "feature_recall": share_found(planted, near),
        "peak_memory_gb": common.peak_memory_gb(),
    }
    report(values, args.output)


def draw_features(images: int, original: np.ndarray, copy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, DIM) float32: kinds of images around centres, variances that fall as those of a network do, and copies that
    are as far from their originals as cropped photos."""
    spread = (1 / np.sqrt(np.arange(10, DIM + 10))).astype(np.float32)
    centres = rng.standard_normal((images // 200, DIM), dtype=np.float32) * spread
    features = rng.standard_normal((images, DIM), dtype=np.float32) * spread
    features += centres[rng.integers(0, len(centres), images)]
    noise = rng.uniform(0.2, 1.2, (len(copy), 1)).astype(np.float32)
    features[copy] = features[original] + noise * rng.standard_normal((len(copy), DIM), dtype=np.float32) * spread
    return features


def share_found(wanted: np.ndarray, blocks: Sequence[np.ndarray]) -> float:
    found = {(int(a), int(b)) for block in blocks for a, b in block}
    return sum((int(a), int(b)) in found for a, b in wanted) / max(1, len(wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("copies", help=copies.__doc__)
    command.add_argument("--photos", type=Path, required=True, help="folder of photos, which are read only")
    command.add_argument("--persons", type=Path, help="CSV with the columns file and person")
    command.add_argument("--images", type=int, default=4000, help="originals at most")
    command.add_argument("--copies", type=int, default=300, help="photos of which copies are planted")
    command.add_argument("--backbone", default="efficientnet_lite0")
    command.add_argument("--weights", type=Path)
    command.add_argument("--image_size", type=int)
    command.add_argument("--device", default="auto")
    command.add_argument("--cache", type=Path, help="folder that keeps the features for another try")
    command.set_defaults(action=copies)
    command = commands.add_parser("scale", help=scale.__doc__)
    command.add_argument("--images", type=int, default=100_000)
    command.set_defaults(action=scale)
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with common.exit_codes():
        args.action(args)


if __name__ == "__main__":
    main()
