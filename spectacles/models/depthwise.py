"""Depthwise convolutions with large kernels, whose weights' gradient takes a fifth of a training step on a CPU.

oneDNN has fast code for the gradient of 3 x 3 kernels only. For larger ones, the same sum is itself a depthwise
convolution, of the inputs with the gradient of the outputs as its kernels, which is fast where these are small.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

SMALLEST_KERNEL = 4
LARGEST_MAP = 20
"""Side of the outputs. docs/benchmarks.md has the times on both sides of it."""


def fast_gradients(device: torch.device) -> AbstractContextManager[object]:
    """A context in which convolutions keep their outputs, and depthwise ones on a CPU compute gradients the fastest
    way. Other devices have their own code, and are not slowed down by looking at every call."""
    return FastGradients() if device.type == "cpu" else nullcontext()


class FastGradients(TorchFunctionMode):
    """See `fast_gradients`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is conv2d and not kwargs and len(args) == 7 and _is_faster(*args):
            inputs, weight, bias, _, padding, _, _ = args
            return _Depthwise.apply(inputs, weight, bias, padding)
        return func(*args, **(kwargs or {}))


def _is_faster(
    inputs: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor | None, stride: object, padding: object,
    dilation: object, groups: int,
) -> bool:  # fmt: skip
    height, width = weight.shape[2:]
    return (
        weight.requires_grad
        and groups == inputs.shape[1] == weight.shape[0]
        and min(height, width) >= SMALLEST_KERNEL
        and max(inputs.shape[2:]) <= LARGEST_MAP
        and stride == dilation == (1, 1)
        and isinstance(padding, tuple)
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
    )


class _Depthwise(torch.autograd.Function):
    """inputs (B, C, H, W), weight (C, 1, k, l), bias (C,) or None -> (B, C, H', W'), with stride 1."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.padding = padding
        return conv2d(inputs, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (inputs, weight) = gradients, ctx.saved_tensors
        of_inputs = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = conv2d_input(  # type: ignore[no-untyped-call]
                inputs.shape, weight, gradient, padding=ctx.padding, groups=len(weight)
            )
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_inputs, weight_gradient(inputs, gradient, ctx.padding), of_bias, None


def weight_gradient(inputs: torch.Tensor, gradient: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """(C, 1, k, l), from inputs (B, C, H, W) and the gradient of the outputs (B, C, H', W'): every image's channel is
    convolved with its own gradient, and the images are summed."""
    images, channels, height, width = inputs.shape
    # (1, B * C, H, W) with the channels last in memory, as oneDNN's depthwise code reads them.
    together = inputs.permute(2, 3, 0, 1).reshape(height, width, images * channels).permute(2, 0, 1)[None]
    kernels = gradient.reshape(images * channels, 1, *gradient.shape[2:])
    of_images = conv2d(together, kernels, padding=padding, groups=images * channels)
    return of_images.view(images, channels, *of_images.shape[2:]).sum(dim=0).unsqueeze(1)
