"""What training needs to go on after its last finished epoch: tensors as safetensors, the rest as its JSON metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spectacles.run_dir import atomic_path

State = dict[str, torch.Tensor]


def save(path: Path, model: State, optimizer: dict[str, Any], facts: dict[str, Any]) -> None:
    """`optimizer` is a torch state_dict; `facts` must be JSON-ready. One file, written atomically."""
    tensors = {f"model/{key}": value for key, value in model.items()}
    for index, slots in optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in slots.items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["facts"]))


def load(path: Path) -> tuple[State, dict[int, State]]:
    """(model state, optimiser slots by parameter number)."""
    model: State = {}
    slots: dict[int, State] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            kind, _, rest = key.partition("/")
            if kind == "model":
                model[rest] = file.get_tensor(key)
            else:
                index, _, name = rest.partition("/")
                slots.setdefault(int(index), {})[name] = file.get_tensor(key)
    return model, slots
