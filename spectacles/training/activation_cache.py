"""What frozen stages make of a fixed set of views, computed once: fine-tuning then starts at their border."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from spectacles.core.device import to_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import allocate
from spectacles.core.progress import progress
from spectacles.models import engines
from spectacles.models.classifier import Classifier
from spectacles.training.augmentation import View
from spectacles.training.batches import Batch, Examples, StepSettings, epoch_order


class Border:
    """Activations at the border of `examples` in every view, and the network from there to the logits.

    Epoch e trains on view e modulo their number. Raises UserError where the backbone cannot be cut, or where the
    activations are larger than `max_gb`. They lie in an unnamed file that vanishes with the process.
    """

    def __init__(
        self,
        classifier: Classifier,
        frozen: set[str],
        examples: Examples,
        views: list[View],
        settings: StepSettings,
        folder: Path,
        max_gb: float,
    ) -> None:
        self.examples, self.settings, self.views = examples, settings, len(views)
        below, above = cut(classifier.backbone, frozen)
        self.network = nn.Sequential(above, classifier.dropout, classifier.head)
        preprocessing, config = examples.pixels.preprocessing, settings.config
        pixels = np.zeros((1, *preprocessing.shape), dtype=np.uint8)
        shape = engines.torch_engine(below, preprocessing, settings.device)(pixels).shape[1:]
        count = len(examples.labels)
        needed = 4 * len(views) * count * int(np.prod(shape))
        if needed > max_gb * 2**30:
            raise UserError(
                f"--cached_views {len(views)} needs {needed / 2**30:.1f} GB and --pixel_cache_gb allows {max_gb:g}: "
                "take fewer views, unfreeze fewer stages, or allow more."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            self.activations = np.memmap(file, dtype=np.float32, mode="w+", shape=(len(views) * count, *shape))
            allocate(file.fileno(), folder)
        memory = folder / "border" / f"{config.backbone.replace('/', '_')}-{config.unfreeze}-{shape[-1]}.json"
        _, run = engines.choose(
            below, preprocessing, settings.device, memory, config.engine, images=len(self.activations)
        )
        starts = [(n, at) for n in range(len(views)) for at in range(0, count, config.batch_size)]
        for number, start in progress(starts, "frozen stages", len(starts), unit="batch"):
            places = examples.positions[start : start + config.batch_size]
            digests = [examples.pixels.hashes[place] for place in places]
            seen = run(views[number](examples.pixels.batch(places), digests))
            self.activations[number * count + start : number * count + start + len(places)] = seen

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """(activations, class indices) on the device, in the epoch's order, the first `start` left out."""
        config, device, count = self.settings.config, self.settings.device, len(self.examples.labels)
        for indices in epoch_order(config.seed, epoch, count, config.batch_size)[start:]:
            inputs = to_device(self.activations[(epoch % self.views) * count + indices], device)
            yield (
                inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs,
                to_device(self.examples.labels[indices], device),
            )


class Tracer(fx.Tracer):
    """Leaves BatchNorm whole, timm's with activation too: inside, its mode would be frozen into the graph."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.modules.batchnorm._BatchNorm) or super().is_leaf_module(module, name)


def cut(backbone: nn.Module, frozen: set[str]) -> tuple[nn.Module, nn.Module]:
    """(the part below, the part above), sharing the backbone's parameters; `frozen` names the modules below.

    The cut is the first place after the last frozen module where a single tensor passes. Raises UserError.
    """
    try:
        nodes = list(Tracer().trace(backbone).nodes)
    except Exception as error:  # tracing runs the model's own code with stand-ins: anything can be raised
        raise UserError(
            f"--cached_views: this backbone cannot be cut ({type(error).__name__}): set it to 0."
        ) from error
    below = [place for place, node in enumerate(nodes) if _in(node, frozen)]
    above = [place for place, node in enumerate(nodes) if _learns(node, backbone) and not _in(node, frozen)]
    if not below or not above:
        raise UserError("--cached_views: no stage is frozen: unfreeze fewer stages with --unfreeze last:N.")
    where = {node: place for place, node in enumerate(nodes)}
    for place in range(below[-1], min(at for at in above if at > below[-1])):
        crossing = [node for node in nodes[: place + 1] if any(where[user] > place for user in node.users)]
        if len(crossing) == 1:
            return _part(backbone, nodes[: place + 1], [], crossing[0]), _part(backbone, nodes[place + 1 :], crossing)
    raise UserError("--cached_views: more than one tensor crosses the border of the frozen stages: set it to 0.")


def _part(
    backbone: nn.Module, nodes: list[fx.Node], inputs: Iterable[fx.Node], output: fx.Node | None = None
) -> fx.GraphModule:
    """A graph of its own out of some of the backbone's nodes, on the backbone's own modules."""
    graph, copies = fx.Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder("activations")
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
    if output is not None:
        graph.output(copies[output])
    return fx.GraphModule(backbone, graph)


def _in(node: fx.Node, frozen: set[str]) -> bool:
    target = str(node.target)
    return node.op in ("call_module", "get_attr") and (target in frozen or target.rpartition(".")[0] in frozen)


def _learns(node: fx.Node, backbone: nn.Module) -> bool:
    if node.op == "get_attr":
        return True
    return node.op == "call_module" and any(True for _ in backbone.get_submodule(str(node.target)).parameters())
