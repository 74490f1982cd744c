"""Which images an epoch draws: as many as it should, each as often as it should, without changing what is learnt on
average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.training import sampling
from spectacles.training.batches import epoch_order

LOSSES = st.lists(st.floats(0, 20), min_size=2, max_size=60).map(np.array)


@given(LOSSES, st.data())
def test_probabilities_sum_to_the_count_and_go_with_the_losses(losses, data):
    count = data.draw(st.integers(1, len(losses) - 1))
    probabilities = sampling.inclusion_probabilities(losses, count)
    assert probabilities.sum() == pytest.approx(count)
    assert ((probabilities > 0) & (probabilities <= 1)).all()
    below = probabilities < 1
    ratios = probabilities[below] / np.maximum(losses[below], max(sampling.LEAST * losses.mean(), sampling.NO_LOSS))
    assert ratios.max() == pytest.approx(ratios.min())
    assert losses[~below].min(initial=np.inf) > losses[below].max()


@given(LOSSES, st.data())
def test_an_epoch_draws_that_many_different_images(losses, data):
    count, epoch = data.draw(st.integers(1, len(losses) - 1)), data.draw(st.integers(0, 50))
    probabilities = sampling.inclusion_probabilities(losses, count)
    drawn = sampling.draw(probabilities, 3, epoch)
    assert len(set(drawn.tolist())) == len(drawn) == count
    assert set(np.flatnonzero(probabilities == 1)) <= set(drawn.tolist())
    assert np.array_equal(drawn, sampling.draw(probabilities, 3, epoch))


def test_each_image_is_drawn_with_its_probability_and_weighs_one_over_it():
    losses = np.random.default_rng(0).exponential(size=200) ** 3
    probabilities = sampling.inclusion_probabilities(losses, 60)
    epochs = [sampling.draw(probabilities, 0, epoch) for epoch in range(2000)]
    shares = np.bincount(np.concatenate(epochs), minlength=200) / len(epochs)
    assert np.abs(shares - probabilities).max() < 0.05
    gradients, weights = np.random.default_rng(1).normal(1, 1, 200), sampling.weights(probabilities)
    means = [(gradients[drawn] * weights[drawn]).mean() for drawn in epochs]
    assert np.mean(means) == pytest.approx(gradients.mean(), abs=0.02)


@given(st.integers(1, 5000), st.floats(0.01, 1))
def test_an_epoch_of_few_images_takes_them_all(images, share):
    count = sampling.images_per_epoch(images, share)
    assert min(images, sampling.FEWEST) <= count <= images
    assert count in (round(share * images), min(images, sampling.FEWEST))


def test_batches_hold_what_was_drawn():
    probabilities = sampling.inclusion_probabilities(np.arange(50.0), 20)
    batches = epoch_order(1, 2, 50, 8, probabilities)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert np.concatenate(batches).tolist() == sampling.draw(probabilities, 1, 2).tolist()
