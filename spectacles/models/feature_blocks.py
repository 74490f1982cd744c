"""Features of several layers in blocks (after Head2Toe, Evci et al. 2022): the last layer, means of earlier ones, and
coarse grids of the middle ones, which still know where something is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spectacles.core.wording import count_of

LAST, MEANS, GRIDS = "last", "means", "grids"
BLOCKS = (LAST, MEANS, GRIDS)
BlockNames = tuple[str, ...]
CANDIDATES: tuple[BlockNames, ...] = ((LAST,), (LAST, MEANS), (LAST, GRIDS))
"""What a linear model may be fitted to, from narrow to wide."""
MOST_IMAGES = 20_000
"""Of more images only the last layer is used: their number makes up for it, and memory and fits grow with them."""
DESCRIPTIONS = {
    (LAST,): "the last layer",
    (LAST, MEANS): "the last layer and means of earlier ones",
    (LAST, GRIDS): "the last layer and 3x3 grids of two middle ones",
}


@dataclass(frozen=True)
class FeatureBlocks:
    """Features of N images."""

    parts: dict[str, np.ndarray]
    """Name of a block -> (N, D) float32, not normalised. LAST always; others only where the backbone has them."""

    @property
    def last(self) -> np.ndarray:
        return self.parts[LAST]

    def __len__(self) -> int:
        return len(self.last)

    def rows(self, chosen: np.ndarray) -> "FeatureBlocks":
        """Those at `chosen`, positions or (N,) bool."""
        return FeatureBlocks({name: values[chosen] for name, values in self.parts.items()})

    def candidates(self) -> list[BlockNames]:
        """Those of CANDIDATES whose blocks are all there."""
        return [names for names in CANDIDATES if all(name in self.parts for name in names)]

    def side_by_side(self, names: Sequence[str]) -> np.ndarray:
        """(N, W)."""
        return self.last if tuple(names) == (LAST,) else np.concatenate([self.parts[name] for name in names], axis=1)

    def scales(self, names: Sequence[str]) -> np.ndarray:
        """(W,) float32: factors of standardised features by which each block counts as much as the last layer, however
        wide it is: the root of the last layer's width over the block's."""
        width = self.last.shape[1]
        parts = [np.full(self.parts[name].shape[1], np.sqrt(width / self.parts[name].shape[1])) for name in names]
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class Taps:
    """The layers that earlier blocks come from: names of modules whose outputs are laid out like the image,
    with the number of features that they contribute."""

    means: dict[str, int] = field(default_factory=dict)
    grids: dict[str, int] = field(default_factory=dict)

    @property
    def blocks(self) -> BlockNames:
        """Those that the backbone has."""
        return (LAST, *((MEANS,) if self.means else ()), *((GRIDS,) if self.grids else ()))

    def only(self, blocks: BlockNames) -> "Taps":
        return Taps(self.means if MEANS in blocks else {}, self.grids if GRIDS in blocks else {})


def blocks_for(images: int) -> BlockNames:
    """What to load of so many images for linear models."""
    return BLOCKS if images <= MOST_IMAGES else (LAST,)


def describe(choices: Sequence[BlockNames]) -> str:
    """One choice of blocks, or one for each label, in words."""
    counts = Counter(choices)
    if len(counts) == 1:
        return DESCRIPTIONS[choices[0]]
    return ", ".join(f"{DESCRIPTIONS[names]} ({count_of(count, 'label')})" for names, count in counts.most_common())


def last_layer(features: np.ndarray) -> FeatureBlocks:
    """(N, D)."""
    return FeatureBlocks({LAST: features})


def stack(parts: Sequence[FeatureBlocks]) -> FeatureBlocks:
    """The images of all parts, one after the other."""
    return FeatureBlocks({name: np.concatenate([part.parts[name] for part in parts]) for name in parts[0].parts})
