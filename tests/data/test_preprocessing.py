"""Preprocessing against torchvision's and numpy's own arithmetic, on every shape of picture."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import BLUE, GREEN, RED, encoded, exif, noise, photo, write_noise
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from spectacles.core.errors import UserError
from spectacles.data.images import decode
from spectacles.data.preprocessing import (
    LOOK_AHEAD,
    Preprocessing,
    decode_one,
    decoded_batches,
    resolve_preprocessing,
    to_picture,
)
from spectacles.models.normalization import normalize

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
COLOUR = Preprocessing(32, "squash", "bicubic", **IMAGENET, in_chans=3)
GREY = Preprocessing(32, "squash", "bilinear", (0.449,), (0.226,), in_chans=1)
CFG = {"input_size": (3, 224, 224), "interpolation": "bilinear", **IMAGENET}

sides = st.integers(1, 300)


def normalized(contract: Preprocessing, *photos: Image.Image) -> torch.Tensor:
    return normalize(contract, torch.from_numpy(np.stack([contract.pixels(photo) for photo in photos])))


def test_normalized_pixels_are_torchvisions():
    expected = functional.normalize(
        functional.to_dtype(functional.to_image(noise(0)), torch.float32, scale=True), *IMAGENET.values()
    )
    torch.testing.assert_close(normalized(COLOUR, noise(0))[0], torch.Tensor(expected), rtol=0, atol=1e-6)


def test_grey_is_the_luma_of_itu_r_601():
    red, green, blue = np.moveaxis(np.asarray(noise(0), dtype=np.float64), 2, 0)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    assert GREY.pixels(noise(0)).shape == GREY.shape == (32, 32, 1)
    [[tensor]] = normalized(GREY, noise(0))
    np.testing.assert_allclose(tensor.numpy() * 0.226 + 0.449, luma, atol=1 / 255)


@pytest.mark.parametrize(
    ("name", "mode"), [("bilinear", v2.InterpolationMode.BILINEAR), ("bicubic", v2.InterpolationMode.BICUBIC)]
)
def test_squash_is_torchvisions_resize(name, mode):
    photo = noise(1, 61, 40)
    expected = functional.resize(functional.pil_to_tensor(photo), [32, 32], mode, antialias=True)
    ours = functional.pil_to_tensor(replace(COLOUR, interpolation=name).fit(photo))
    assert (ours.int() - expected.int()).abs().max() <= 1


@settings(max_examples=40)
@given(sides, sides, st.sampled_from(["squash", "crop", "pad"]), st.integers(16, 40), st.sampled_from([COLOUR, GREY]))
def test_every_shape_of_picture_becomes_the_models_input(width, height, resize, size, base):
    contract = replace(base, image_size=size, resize=resize)
    pixels = contract.pixels(noise(0, width, height))
    assert pixels.shape == contract.shape == (size, size, base.in_chans)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable and pixels.flags.c_contiguous
    tensor = normalized(contract, noise(0, width, height))
    assert tensor.shape == (1, base.in_chans, size, size)
    assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
    assert tensor.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=6), st.sampled_from([COLOUR, GREY]))
def test_an_image_does_not_depend_on_its_batch(seeds, contract):
    together = normalized(contract, *map(noise, seeds))
    for seed, tensor in zip(seeds, together, strict=True):
        assert torch.equal(tensor, normalized(contract, noise(seed))[0])


@pytest.mark.parametrize("contract", [COLOUR, GREY])
def test_floating_point_pixels_are_normalized_in_the_same_way(contract):
    pixels = torch.from_numpy(contract.pixels(noise(0)))[None]
    assert torch.equal(normalize(contract, pixels.float()), normalize(contract, pixels))


@settings(max_examples=40)
@given(sides, sides)
def test_pad_keeps_the_whole_picture_in_the_middle_of_black(width, height):
    fitted = np.asarray(replace(COLOUR, resize="pad").fit(Image.new("RGB", (width, height), (255, 255, 255))))
    across, down = (max(1, round(32 * side / max(width, height))) for side in (width, height))
    rows, columns = (np.flatnonzero(fitted.max(axis=(2, axis))) for axis in (1, 0))
    assert (len(rows), len(columns)) == (down, across)
    assert abs(rows[0] - (31 - rows[-1])) <= 1 and abs(columns[0] - (31 - columns[-1])) <= 1


def test_pad_keeps_every_corner():
    photo = Image.new("RGB", (90, 60))
    corners = {(0, 0): RED, (60, 0): GREEN, (0, 30): BLUE, (60, 30): (255, 255, 255)}
    for corner, colour in corners.items():
        photo.paste(colour, (*corner, corner[0] + 30, corner[1] + 30))
    fitted = replace(COLOUR, image_size=30, resize="pad", interpolation="bilinear").fit(photo)
    assert [fitted.getpixel(at) for at in ((1, 7), (28, 7), (1, 22), (28, 22))] == [*corners.values()]


@pytest.mark.parametrize("turned", [False, True])
def test_crop_keeps_the_centre_and_nothing_else(turned):
    photo = Image.new("RGB", (300, 100), RED)
    photo.paste(GREEN, (100, 0, 200, 100))
    photo.paste(BLUE, (200, 0, 300, 100))
    fitted = replace(COLOUR, resize="crop").fit(photo.transpose(Image.Transpose.ROTATE_90) if turned else photo)
    np.testing.assert_array_equal(np.asarray(fitted)[2:-2, 2:-2], np.broadcast_to(GREEN, (28, 28, 3)))


def test_squash_keeps_both_ends():
    photo = Image.new("RGB", (300, 100), RED)
    photo.paste(BLUE, (150, 0, 300, 100))
    fitted = COLOUR.fit(photo)
    assert (fitted.getpixel((0, 16)), fitted.getpixel((31, 16))) == (RED, BLUE)


def test_a_displayed_image_has_three_channels():
    np.testing.assert_array_equal(to_picture(COLOUR.pixels(noise(0))), np.asarray(noise(0)))
    grey = np.asarray(noise(0).convert("L").convert("RGB"))
    np.testing.assert_array_equal(to_picture(GREY.pixels(noise(0))), grey)


def test_another_size_changes_nothing_else():
    assert COLOUR.at(48) == replace(COLOUR, image_size=48)
    assert COLOUR.at(48).pixels(noise(0)).shape == COLOUR.at(48).shape == (48, 48, 3)
    assert COLOUR.at(48).least_side == 2 * 48


@pytest.mark.parametrize("contract", [COLOUR, GREY])
def test_the_contract_survives_json(contract):
    assert Preprocessing.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_the_backbones_own_values_are_taken():
    resolved = resolve_preprocessing(CFG, None, "crop", 3)
    assert resolved == Preprocessing(224, "crop", "bilinear", **IMAGENET, in_chans=3)


def test_one_channel_gets_the_mean_of_the_means_and_of_the_stds():
    resolved = resolve_preprocessing(CFG, 64, "squash", 1)
    assert (resolved.image_size, resolved.in_chans) == (64, 1)
    assert resolved.mean == pytest.approx((np.mean(IMAGENET["mean"]),))
    assert resolved.std == pytest.approx((np.mean(IMAGENET["std"]),))


def test_an_interpolation_without_a_pillow_name_becomes_bicubic():
    assert resolve_preprocessing({**CFG, "interpolation": "random"}, None, "squash", 3).interpolation == "bicubic"


@pytest.mark.parametrize("size", [-224, 0, 15, 2049])
def test_an_image_size_out_of_range_is_the_users_mistake(size):
    with pytest.raises(UserError, match=f"--image_size {size} "):
        resolve_preprocessing(CFG, size, "squash", 3)


PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@settings(max_examples=30)
@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_batches_hold_every_source_in_order_and_rejected_ones_in_their_place(seeds, batch_size, threads):
    sources = [b"no picture" if seed is None else encoded(noise(seed)) for seed in seeds]
    batches = list(decoded_batches(sources, PREPROCESSING, batch_size, threads))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    decoded = [item for batch in batches for item in batch]
    assert len(decoded) == len(seeds)
    for item, seed in zip(decoded, seeds, strict=True):
        if seed is None:
            assert item.pixels is None and item.reason.startswith("not an image")
        else:
            np.testing.assert_array_equal(item.pixels, PREPROCESSING.pixels(noise(seed)))
            assert item.reason == ""


def test_a_file_has_its_name_and_bytes_have_none(tmp_path):
    write_noise(tmp_path, ["a.png"])
    path = tmp_path / "a.png"
    for source, name in ((path, str(path)), (path.read_bytes(), "")):
        assert decode_one(source, PREPROCESSING).name == name
    missing = decode_one(tmp_path / "missing.png", PREPROCESSING)
    assert (missing.name, missing.reason) == (str(tmp_path / "missing.png"), "file not found")


def test_a_large_photo_is_decoded_as_small_as_the_model_allows():
    content = encoded(photo(0, 640, 480), "JPEG", exif=exif(6))
    [[item]] = decoded_batches([content], PREPROCESSING, 1)
    expected = PREPROCESSING.pixels(decode(content, least_side=PREPROCESSING.least_side).image)
    np.testing.assert_array_equal(item.pixels, expected)
    assert not np.array_equal(expected, PREPROCESSING.pixels(decode(content).image))
    assert item.conversions == ("EXIF orientation applied",)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sources_are_read_only_a_little_ahead_of_the_consumer(batch_size):
    asked, content = 0, encoded(noise(0))

    def sources() -> Iterator[Path | bytes]:
        nonlocal asked
        for _ in range(60):
            asked += 1
            yield content

    batches = decoded_batches(sources(), PREPROCESSING, batch_size, 2)
    for taken in range(1, 6):
        next(batches)
        assert asked <= (taken + LOOK_AHEAD) * batch_size
    batches.close()


def test_the_caller_sets_the_pixel_limit():
    [[item]] = decoded_batches([encoded(noise(0))], PREPROCESSING, 4, 1, max_pixels=32 * 32 - 1)
    assert "32 x 32 pixels" in item.reason
