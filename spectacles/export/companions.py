"""What lies beside exported files for those who use them: the classes, a program in several languages, an app."""

import shutil
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from spectacles.core.fileio import atomic_write

CLIENTS, FOR_CLIENTS = Path(__file__).with_name("clients"), "onnx_photo-fp32.onnx"
"""Programs of at most 20 lines, and which file they open. Python's ends in .txt, so that nothing here imports it."""
ANDROID, FOR_ANDROID = Path(__file__).with_name("android"), "tflite-fp32.tflite"


def write(folder: Path, classes: Sequence[str], files: Collection[str]) -> None:
    """Into the folder of these exported files."""
    atomic_write(folder / "labels.txt", "".join(f"{label}\n" for label in classes))
    if FOR_CLIENTS in files:
        for client in CLIENTS.iterdir():
            shutil.copyfile(client, folder / client.name.removesuffix(".txt"))
    if FOR_ANDROID in files:
        shutil.copytree(ANDROID, app := folder / ANDROID.name)
        (assets := app / "app" / "src" / "main" / "assets").mkdir()
        shutil.copyfile(folder / FOR_ANDROID, assets / "model.tflite")
        with zipfile.ZipFile(folder / FOR_ANDROID) as archive:
            archive.extractall(assets)
