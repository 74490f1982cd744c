"""Run by the interpreter of `litert_environment`: python litert_convert.py PROGRAM.pt2 MODEL.tflite."""

import sys


def convert(program: str, target: str) -> None:
    """A program of torch.export, for one picture, as a LiteRT file."""
    import litert_torch
    import torch

    loaded = torch.export.load(program)
    pictures, _ = loaded.example_inputs
    litert_torch.convert(loaded.module(), pictures).export(target)


if __name__ == "__main__":
    convert(*sys.argv[1:])
