"""What training sees is decided by a row of numbers alone, and changes what the flags say, nothing else."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photo
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.v2 import functional

from spectacles.core.config import AugmentConfig
from spectacles.data.preprocessing import Preprocessing
from spectacles.models.normalization import normalize
from spectacles.training import augmentation
from spectacles.training.augmentation import COLUMNS, Augmentation, affine, draws, row_for

COLOUR = Preprocessing(32, "squash", "bilinear", (0.5, 0.4, 0.3), (0.25, 0.5, 0.2), 3)
GREY = Preprocessing(32, "squash", "bilinear", (0.4,), (0.2,), 1)
OFF = AugmentConfig(
    flip=False, crop_scale=1, zoom_out=0, rotation=0, color_jitter=0, grayscale=0, blur=0, jpeg=0, random_erasing=0
)  # fmt: skip
STRONG = AugmentConfig(
    crop_scale=0.3, zoom_out=0.5, rotation=30, color_jitter=0.5, grayscale=0.3, blur=0.5, jpeg=0.5, random_erasing=0.5,
    randaugment=9,
)  # fmt: skip
CPU = torch.device("cpu")

seeds = st.integers(0, 2**32)
contracts = pytest.mark.parametrize("contract", [COLOUR, GREY])


def pictures(count: int = 1, contract: Preprocessing = COLOUR) -> np.ndarray:
    """uint8 (B, S, S, C), with no value near 0 or 255."""
    return np.stack([contract.pixels(photo(seed, contract.image_size, contract.image_size)) for seed in range(count)])


def rows(**columns: float) -> np.ndarray:
    """One row that changes nothing unless a column says so: numbers in the middle, no rare change chosen."""
    chosen = dict.fromkeys(("flip", "zooms_out", "is_grey", "is_blurred", "is_jpeg", "is_erased"), 0.99) | columns
    return np.array([[chosen.get(name, 0.5) for name in COLUMNS]], dtype=np.float32)


def tensor_of(contract: Preprocessing, pixels: np.ndarray) -> torch.Tensor:
    return normalize(contract, torch.from_numpy(pixels.copy()))


def augmented(
    config: AugmentConfig,
    pixels: np.ndarray,
    numbers: np.ndarray,
    contract: Preprocessing = COLOUR,
    size: int | None = None,
) -> torch.Tensor:
    return Augmentation(config, contract)(pixels, numbers, size or pixels.shape[1])


def values(tensor: torch.Tensor, contract: Preprocessing = COLOUR) -> np.ndarray:
    """(B, C, S, S) normalised -> (B, S, S, C), 0..255."""
    channels = tensor.permute(0, 2, 3, 1).double().numpy()
    return (channels * np.array(contract.std) + np.array(contract.mean)) * 255


# rows of numbers


@given(seeds, st.integers(0, 100), st.integers(0, 20), st.integers(0, 20))
def test_a_row_is_a_function_of_seed_epoch_and_index_whatever_the_count(seed, epoch, count, more):
    few, many = draws(seed, epoch, count), draws(seed, epoch, count + more)
    assert few.shape == (count, len(COLUMNS)) and few.dtype == np.float32
    np.testing.assert_array_equal(few, many[:count])
    assert ((many >= 0) & (many < 1)).all()


def test_another_seed_epoch_or_index_draws_other_numbers():
    drawn = [draws(seed, epoch, 3) for seed in (0, 1) for epoch in (1, 2)]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 12


def test_a_row_for_a_view_is_a_function_of_what_it_is_for():
    assert row_for(2, "abc").shape == (len(COLUMNS),)
    np.testing.assert_array_equal(row_for(2, "abc"), row_for(2, "abc"))
    assert len(np.unique([row_for(*parts) for parts in ((2, "abc"), (3, "abc"), (2, "abd"))], axis=0)) == 3


# what holds for all changes


@settings(max_examples=20)
@given(seeds, st.integers(2, 8), st.sampled_from([COLOUR, GREY]), st.sampled_from([16, 24, 32]))
def test_what_becomes_of_a_picture_does_not_depend_on_its_batch(seed, count, contract, size):
    pixels, numbers = pictures(count, contract), draws(seed, 1, count)
    together = augmented(STRONG, pixels, numbers, contract, size)
    for place in range(count):
        alone = augmented(STRONG, pixels[place : place + 1], numbers[place : place + 1], contract, size)
        torch.testing.assert_close(alone[0], together[place], rtol=1e-4, atol=1e-4)


@contracts
@pytest.mark.parametrize("image_size", [31, 32])
def test_all_switched_off_is_preprocessing(contract, image_size):
    contract = contract.at(image_size)
    pixels = pictures(5, contract)
    torch.testing.assert_close(
        augmented(OFF, pixels, draws(0, 1, 5), contract), tensor_of(contract, pixels), rtol=0, atol=1e-4
    )


@contracts
@pytest.mark.parametrize("config", [AugmentConfig(), STRONG, OFF])
@pytest.mark.parametrize("size", [16, 24, 32])
def test_the_result_is_the_models_input(config, contract, size):
    tensor = augmented(config, pictures(9, contract), draws(0, 1, 9), contract, size)
    assert tensor.shape == (9, contract.in_chans, size, size)
    assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
    assert tensor.is_contiguous(memory_format=torch.channels_last)


@contracts
def test_the_pictures_given_are_left_alone(contract):
    pixels = pictures(9, contract)
    augmented(STRONG, pixels, draws(0, 1, 9), contract)
    Augmentation(STRONG, contract).view(pixels, draws(0, 1, 9))
    np.testing.assert_array_equal(pixels, pictures(9, contract))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(7)
    np.random.seed(7)
    augmented(STRONG, pictures(4), draws(0, 1, 4))
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_the_gpus_generators_are_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    augmented(STRONG, pictures(4), draws(0, 1, 4))
    assert seeded == []


@contracts
def test_a_view_is_the_same_change_as_pixels(contract):
    pixels, numbers = pictures(6, contract), draws(0, 1, 6)
    view = Augmentation(STRONG, contract).view(pixels, numbers)
    assert view.dtype == np.uint8 and view.shape == pixels.shape and view.flags.c_contiguous
    np.testing.assert_allclose(view, values(augmented(STRONG, pixels, numbers, contract), contract), atol=0.51)


# the frame


def test_flip_mirrors_where_its_number_is_below_one_half():
    pixels, config = pictures(), replace(OFF, flip=True)
    plain = tensor_of(COLOUR, pixels)
    for number, expected in ((0.2, plain.flip(-1)), (0.7, plain)):
        torch.testing.assert_close(augmented(config, pixels, rows(flip=number)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(augmented(OFF, pixels, rows(flip=0.2)), plain, rtol=0, atol=1e-4)


def test_a_turn_is_a_rotation_about_the_middle():
    pixels = pictures()
    plain = tensor_of(COLOUR, pixels)
    for angle, turn, quarters in ((90, 0.0, 3), (90, 1.0, 1), (180, 0.0, 2), (180, 0.25, 3), (10, 0.5, 0)):
        turned = augmented(replace(OFF, rotation=angle), pixels, rows(turn=turn))
        torch.testing.assert_close(turned, plain.rot90(quarters, (2, 3)), rtol=0, atol=1e-3)


@given(
    seeds,
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0, 180),
    st.booleans(),
)
def test_crops_lie_within_the_frame_and_zoomed_out_pictures_are_whole(seed, crop_scale, zoom_out, rotation, flip):
    config = AugmentConfig(crop_scale=crop_scale, zoom_out=zoom_out, rotation=0, flip=flip)
    drawn = dict(zip(COLUMNS, draws(seed, 1, 20).T, strict=True))
    theta, reduction = affine(config, drawn)
    assert theta.shape == (20, 2, 3) and theta.dtype == np.float32
    corners = theta @ np.array([[-1, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    low, high = corners.min(axis=2), corners.max(axis=2)
    out, tolerance = drawn["zooms_out"] < zoom_out, 1e-5
    assert (low[~out] >= -1 - tolerance).all() and (high[~out] <= 1 + tolerance).all()
    assert (low[out] <= -1 + tolerance).all() and (high[out] >= 1 - tolerance).all()
    sides = (high - low) / 2
    assert (sides.prod(axis=1)[~out] >= crop_scale - 1e-4).all()
    assert (sides[out] <= augmentation.ZOOM_OUT * augmentation.ASPECT**0.5 + tolerance).all()
    aspect = sides[:, 0] / sides[:, 1]
    assert (np.maximum(aspect, 1 / aspect) <= augmentation.ASPECT + tolerance).all()
    np.testing.assert_allclose(reduction, np.sqrt(sides.prod(axis=1)), rtol=1e-4)
    mirrored = np.linalg.det(theta[:, :, :2].astype(np.float64)) < 0
    np.testing.assert_array_equal(mirrored, (drawn["flip"] < 0.5) & flip)
    turned, _ = affine(replace(config, rotation=rotation), drawn)
    np.testing.assert_allclose(
        np.linalg.det(turned[:, :, :2].astype(np.float64)),
        np.linalg.det(theta[:, :, :2].astype(np.float64)),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("place", [0.0, 0.5, 0.99999])
def test_crop_scale_is_the_smallest_share_of_the_area(place):
    pixels = pictures()
    seen = augmented(replace(OFF, crop_scale=0.25), pixels, rows(crop_area=0, crop_x=place, crop_y=1 - place))
    x, y = round(16 * place), round(16 * (1 - place))
    crop = tensor_of(COLOUR, pixels)[..., y : y + 16, x : x + 16]
    expected = interpolate(crop, size=(32, 32), mode="bilinear", align_corners=False)
    # The crop's own border is mixed with what is beside it.
    torch.testing.assert_close(seen[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=1e-3)
    whole = augmented(replace(OFF, crop_scale=0.25), pixels, rows(crop_area=0.999999))
    torch.testing.assert_close(whole, tensor_of(COLOUR, pixels), rtol=0, atol=1e-2)


def test_a_picture_zoomed_out_is_whole_and_mirrored_around():
    contract = COLOUR.at(40)
    config, pixels = replace(OFF, zoom_out=1), pictures(contract=contract)
    [seen] = values(augmented(config, pixels, rows(zoom=0.9999999), contract), contract)
    small = seen[12:28, 12:28]
    expected = np.asarray(Image.fromarray(pixels[0]).resize((16, 16), Image.Resampling.BOX), dtype=np.float64)
    assert np.abs(small - expected).mean() < 4
    np.testing.assert_allclose(seen[12:28, :12], small[:, :12][:, ::-1], atol=0.05)
    np.testing.assert_allclose(seen[28:, 12:28], small[-12:][::-1], atol=0.05)


def test_a_picture_zoomed_out_a_little_is_mirrored_around_too():
    contract = COLOUR.at(40)
    zoom = np.log(1.25) / np.log(2.5)
    [seen] = values(
        augmented(replace(OFF, zoom_out=1), pictures(contract=contract), rows(zoom=zoom), contract), contract
    )
    np.testing.assert_allclose(seen[:, :4], seen[:, 4:8][:, ::-1], atol=0.05)
    np.testing.assert_allclose(seen[36:], seen[32:36][::-1], atol=0.05)
    assert seen[:4, :4].mean() > 20


def test_a_smaller_result_is_the_picture_resized():
    plain = tensor_of(COLOUR, pictures(2))
    half = augmented(OFF, pictures(2), draws(0, 1, 2), size=16)
    torch.testing.assert_close(half, avg_pool2d(plain, 2), rtol=0, atol=1e-4)
    expected = interpolate(plain, size=(24, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augmented(OFF, pictures(2), draws(0, 1, 2), size=24), expected, rtol=0, atol=1e-4)


def test_strong_reduction_does_not_alias():
    stripes = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    for size in (13, 16, 20):
        np.testing.assert_allclose(values(augmented(OFF, stripes, rows(), size=size)), 127.5, atol=0.01)


# colour, blur, compression, erasing


def factor(strength: float, number: float) -> float:
    return 1 + strength * (2 * number - 1)


def floating(pixels: np.ndarray) -> torch.Tensor:
    """(B, C, S, S), 0..1, as torchvision takes it."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@settings(max_examples=40)
@given(st.floats(0, 0.15), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_colours_change_as_torchvision_changes_them(strength, brightness, contrast, saturation):
    reddish = pictures() // np.array([1, 2, 4], dtype=np.uint8)
    numbers = rows(brightness=brightness, contrast=contrast, saturation=saturation)
    changed = augmented(replace(OFF, color_jitter=strength), reddish, numbers)
    expected = functional.adjust_brightness(floating(reddish), factor(strength, brightness))
    expected = functional.adjust_saturation(expected, factor(strength, saturation))
    expected = functional.adjust_contrast(expected, factor(strength, contrast))
    np.testing.assert_allclose(values(changed), 255 * expected.permute(0, 2, 3, 1).numpy(), atol=0.1)


@pytest.mark.parametrize("number", [0.0, 0.3, 1.0])
def test_what_becomes_too_bright_is_cut_off_as_in_torchvision(number):
    changed = augmented(replace(OFF, color_jitter=1), pictures(), rows(brightness=number))
    expected = functional.adjust_brightness(floating(pictures()), factor(1, number))
    np.testing.assert_allclose(values(changed), 255 * expected.permute(0, 2, 3, 1).numpy(), atol=0.1)


def test_grey_pictures_change_in_brightness_and_contrast_only():
    pixels, config = pictures(contract=GREY), replace(OFF, color_jitter=0.2)
    changed = augmented(config, pixels, rows(brightness=0.8, contrast=0.1, saturation=0.0), GREY)
    expected = functional.adjust_brightness(floating(pixels), factor(0.2, 0.8))
    expected = functional.adjust_contrast(expected, factor(0.2, 0.1))
    np.testing.assert_allclose(values(changed, GREY), 255 * expected.permute(0, 2, 3, 1).numpy(), atol=0.1)


@pytest.mark.parametrize("number", [0.0, 0.29, 0.31])
def test_the_share_grayscale_becomes_its_luma(number):
    changed = values(augmented(replace(OFF, grayscale=0.3), pictures(), rows(is_grey=number)))
    luma = (pictures() @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, axis=-1)
    np.testing.assert_allclose(changed, luma if number < 0.3 else pictures(), atol=0.05)


@contracts
@pytest.mark.parametrize("image_size", [32, 64, 224])
@pytest.mark.parametrize("number", [0.0, 0.4, 0.999])
def test_blur_is_gaussian_and_in_proportion_to_the_picture(contract, image_size, number):
    contract = contract.at(image_size)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *contract.shape), dtype=np.uint8)
    numbers = np.concatenate([rows(is_blurred=0.1, blur=number), rows(is_blurred=0.3)])
    changed = values(augmented(replace(OFF, blur=0.2), pixels, numbers, contract), contract)
    sigma = (0.4 + 1.6 * number) * image_size / 224
    radius = -(-4 * image_size // 224)
    expected = gaussian_filter(
        pixels[0].astype(np.float64), (sigma, sigma, 0), radius=(radius, radius, 0), mode="mirror"
    )
    np.testing.assert_allclose(changed[0], expected, atol=0.05)
    np.testing.assert_allclose(changed[1], pixels[1], atol=0.05)


@contracts
@pytest.mark.parametrize(("number", "quality"), [(0.0, 15), (0.5, 50), (0.99999, 85)])
def test_compression_is_pillows(contract, number, quality):
    pixels = pictures(2, contract)
    numbers = np.concatenate([rows(is_jpeg=0.3), rows(is_jpeg=0.1, jpeg=number)])
    changed = values(augmented(replace(OFF, jpeg=0.2), pixels, numbers, contract), contract)
    file = BytesIO()
    Image.fromarray(pixels[1].squeeze()).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).reshape(contract.shape)
    np.testing.assert_allclose(changed, np.stack([pixels[0], expected]), atol=0.05)
    assert not np.array_equal(expected, pixels[1])


@settings(max_examples=50)
@given(*[st.floats(0, 0.99999)] * 3, st.sampled_from([COLOUR, GREY]))
def test_erasing_covers_exactly_one_square(area, x, y, contract):
    pixels = pictures(contract=contract)
    numbers = rows(is_erased=0.0, erase_area=area, erase_x=x, erase_y=y, erase_colour=0)
    [seen] = values(augmented(replace(OFF, random_erasing=0.1), pixels, numbers, contract), contract)
    erased = (np.abs(seen) < 0.01).all(axis=2)
    side = round(32 * (0.02 + 0.18 * area) ** 0.5)
    assert erased.sum() == side**2
    assert erased.any(axis=0).sum() == erased.any(axis=1).sum() == side
    np.testing.assert_allclose(seen[~erased], pixels[0][~erased], atol=0.05)


@pytest.mark.parametrize("x", [0.0, 0.99999])
@pytest.mark.parametrize("y", [0.0, 0.99999])
def test_erasing_reaches_every_border(x, y):
    numbers = rows(is_erased=0, erase_x=x, erase_y=y, erase_colour=0)
    [seen] = values(augmented(replace(OFF, random_erasing=1), pictures(), numbers))
    erased = (np.abs(seen) < 0.01).all(axis=2)
    assert erased[:, 31 if x else 0].any() and erased[31 if y else 0].any()


def test_the_share_random_erasing_is_erased_in_the_colour_drawn():
    numbers = np.concatenate([rows(is_erased=0.05, erase_colour=0.25), rows(is_erased=0.15, erase_colour=0.25)])
    seen = values(augmented(replace(OFF, random_erasing=0.1), pictures(2), numbers))
    assert (np.abs(seen[0] - 63.75) < 0.01).all(axis=2).sum() == round(32 * 0.11**0.5) ** 2
    np.testing.assert_allclose(seen[1], pictures(2)[1], atol=0.05)


@contracts
def test_randaugment_changes_pictures_by_their_row(contract):
    pixels, numbers = pictures(10, contract), draws(0, 1, 10)
    first, again = (augmented(replace(OFF, randaugment=20), pixels, numbers, contract) for _ in range(2))
    assert torch.equal(first, again)
    plain = tensor_of(contract, pixels)
    assert sum(not torch.allclose(one, other, atol=1e-3) for one, other in zip(first, plain, strict=True)) >= 5
    same = augmented(replace(OFF, randaugment=20), np.stack([pixels[0]] * 10), numbers, contract)
    assert len({tensor.numpy().tobytes() for tensor in same}) > 3
