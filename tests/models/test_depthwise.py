"""The gradients of depthwise convolutions on the CPU."""

import copy

import pytest
import timm
import torch
from torch import nn

from spectacles.models.depthwise import FastGradients, weight_gradient


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "padding", "size"), [((5, 5), (2, 2), 5), ((7, 7), (3, 3), 9), ((4, 6), (0, 1), 7)])
def test_the_gradient_is_that_of_torch(kernel, padding, size, layout):
    convolution = nn.Conv2d(6, 6, kernel, padding=padding, groups=6)
    images = torch.randn(3, 6, size, size).to(memory_format=layout).requires_grad_()
    outputs = convolution(images)
    gradient = torch.randn_like(outputs)
    outputs.backward(gradient)
    found = weight_gradient(images.detach(), gradient, padding)
    torch.testing.assert_close(found, convolution.weight.grad)


def gradients(network, images, context):
    network = copy.deepcopy(network)
    with context:
        outputs = network(images)
    outputs.square().sum().backward()
    return outputs, {name: value.grad for name, value in network.named_parameters()}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_a_network_learns_the_same(name):
    network = timm.create_model(name, num_classes=2).eval()
    images = torch.randn(2, 3, 64, 64)
    expected, theirs = gradients(network, images, torch.enable_grad())
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectacles.models.depthwise.weight_gradient", counting(calls))
        outputs, ours = gradients(network, images, FastGradients())
    torch.testing.assert_close(outputs, expected)
    for parameter, value in theirs.items():
        torch.testing.assert_close(ours[parameter], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    assert calls and all(max(shape) <= 20 for shape in calls)


def counting(calls):
    def count(inputs, gradient, padding):
        calls.append(tuple(inputs.shape[2:]))
        return weight_gradient(inputs, gradient, padding)

    return count


def test_frozen_depthwise_layers_get_no_gradient():
    convolution = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    convolution.weight.requires_grad_(False)
    with FastGradients():
        convolution(torch.randn(1, 4, 8, 8)).sum().backward()
    assert convolution.weight.grad is None and convolution.bias.grad is not None
