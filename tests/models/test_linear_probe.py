"""The head is scikit-learn's own logistic regression, written as one linear layer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from spectacles.core.errors import UserError
from spectacles.models import linear_probe
from spectacles.models.feature_blocks import GRIDS, LAST, MEANS, FeatureBlocks, last_layer
from spectacles.models.linear_probe import ABSENT, STRENGTHS, Regression, fit_head

Data = tuple[np.ndarray, np.ndarray]


def gaussians(count: int, classes: int, spread: float = 3.0, seed: int = 0) -> Data:
    """Features of very different scales, with the classes overlapping more the larger the spread."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    features = (centres[labels] + spread * rng.normal(size=(count, 8))) * np.logspace(-2, 1, 8) + 5
    return features.astype(np.float32), labels


def scikit_learn(train: Data, strength: float, weights: np.ndarray | None = None) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
    features, labels = train
    return model.fit(features.astype(np.float64), labels, logisticregression__sample_weight=weights)


def assert_same_answers(head: linear_probe.Head, model: Pipeline, features: np.ndarray) -> None:
    expected = model.predict_proba(features.astype(np.float64))
    classes = model.named_steps["logisticregression"].classes_
    np.testing.assert_allclose(softmax(head.logits(features), axis=1)[:, classes], expected, atol=2e-3)


def one_strength(monkeypatch: pytest.MonkeyPatch, strength: float) -> None:
    monkeypatch.setattr(linear_probe, "STRENGTHS", (strength,))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [1e-3, 1e-1, 1.0])
def test_the_head_gives_scikit_learns_probabilities(classes, strength, monkeypatch):
    one_strength(monkeypatch, strength)
    train, val = gaussians(200, classes), gaussians(100, classes, seed=1)
    head, model = fit_head(train, val, classes), scikit_learn(train, strength)
    assert head.weight.shape == (classes, 8) and head.bias.shape == (classes,)
    assert head.weight.dtype == head.bias.dtype == head.logits(val[0]).dtype == np.float32
    assert head.strength == strength
    assert_same_answers(head, model, val[0])
    expected = metrics.log_loss(train[1], model.predict_proba(train[0]))
    assert head.train_loss == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("absent", [0, 1, 3])
@pytest.mark.parametrize("classes", [3, 4])
def test_a_class_without_training_images_is_never_predicted(classes, absent, monkeypatch):
    one_strength(monkeypatch, 0.1)
    absent = min(absent, classes - 1)
    features, labels = gaussians(200, classes)
    present = labels != absent
    train = features[present], labels[present]
    head = fit_head(train, train, classes)
    assert_same_answers(head, scikit_learn(train, 0.1), features)
    probabilities = softmax(head.logits(features).astype(np.float64), axis=1)
    assert probabilities[:, absent].max() < 1e-6
    assert (head.weight[absent] == 0).all() and head.bias[absent] == ABSENT


@pytest.mark.parametrize("classes", [2, 3])
def test_weights_count_as_scikit_learn_counts_them(classes, monkeypatch):
    one_strength(monkeypatch, 0.1)
    train = gaussians(200, classes)
    weights = np.random.default_rng(1).uniform(0.1, 3, classes)
    head = fit_head(train, train, classes, weights)
    assert_same_answers(head, scikit_learn(train, 0.1, weights[train[1]]), train[0])
    unweighted = fit_head(train, train, classes)
    assert not np.allclose(head.weight, unweighted.weight, rtol=0.05)


@pytest.mark.parametrize(("spread", "classes"), [(0.3, 2), (1.0, 3), (3.0, 2), (3.0, 3), (8.0, 4), (30.0, 3)])
def test_the_regularisation_is_the_one_that_suits_the_validation_data_best(spread, classes):
    train, val = gaussians(120, classes, spread), gaussians(400, classes, spread, seed=1)
    losses = [
        metrics.log_loss(val[1], scikit_learn(train, strength).predict_proba(val[0].astype(np.float64)))
        for strength in STRENGTHS
    ]
    assert fit_head(train, val, classes).strength == STRENGTHS[int(np.argmin(losses))]


@pytest.mark.parametrize(
    ("losses", "chosen", "fits"),
    [
        ([3.0, 2.0, 2.5, 1.0, 1.5, 1.6, 0.0], 3, 6),
        ([3.0, 2.0, 2.5, 1.0, 1.5, 0.5, 0.4], 6, 7),
        ([1.0, 1.0, 1.0, 0.5], 0, 3),
    ],
)
def test_the_search_ends_when_validation_has_become_worse_twice(losses, chosen, fits, monkeypatch):
    train, val = gaussians(60, 2), gaussians(20, 2, seed=1)
    told = []

    def scripted(logits: np.ndarray, labels: np.ndarray) -> float:
        if len(labels) == 20:
            told.append(losses[len(told)])
        return told[-1] if len(labels) == 20 else 0.0

    monkeypatch.setattr(linear_probe, "log_loss", scripted)
    assert fit_head(train, val, 2).strength == STRENGTHS[chosen]
    assert len(told) == fits


def test_different_data_ask_for_different_regularisation():
    chosen = {
        fit_head(gaussians(120, 3, spread), gaussians(400, 3, spread, seed=1), 3).strength for spread in (0.3, 3, 30)
    }
    assert len(chosen) == 3


def test_a_class_that_only_validation_knows_does_not_stop_the_search():
    features, labels = gaussians(90, 3)
    head = fit_head((features[labels < 2], labels[labels < 2]), (features, labels), 3)
    assert np.isfinite(head.logits(features)).all()


def test_features_that_never_change_are_ignored():
    features, labels = gaussians(100, 2)
    features[:, 3] = 7
    head = fit_head((features, labels), (features, labels), 2)
    assert np.isfinite(head.weight).all() and np.abs(head.weight[:, 3]).max() < 1e-6


def test_training_images_of_one_class_are_the_users_mistake():
    features, labels = gaussians(20, 2)
    with pytest.raises(UserError, match="only one class"):
        fit_head((features[labels == 1], labels[labels == 1]), (features, labels), 2)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 6), st.floats(0.01, 300))
def test_log_loss_is_scikit_learns(seed, count, classes, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(count, classes))).astype(np.float32)
    labels = rng.integers(0, classes, count)
    expected = -np.log(softmax(logits.astype(np.longdouble), axis=1))[np.arange(count), labels].mean()
    assert linear_probe.log_loss(logits, labels) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    moderate = logits / max(1, np.abs(logits).max() / 10)
    assert linear_probe.log_loss(moderate, labels) == pytest.approx(
        metrics.log_loss(labels, softmax(moderate.astype(np.float64), axis=1), labels=range(classes)), rel=1e-6
    )


def test_rows_are_predicted_by_fits_that_left_them_out_and_divisions_are_averaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    labels = np.append(np.arange(60) % 2, 2)  # one image of class 2: no other fold has that class
    features = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(61, 8))).astype(np.float32)
    divisions = [np.arange(61) % 3, rng.integers(0, 3, 61)]
    both = linear_probe.cross_fit(last_layer(features), labels, divisions).probabilities
    assert np.isnan(both).any(axis=1).nonzero()[0].tolist() == [60]
    monkeypatch.setattr(linear_probe, "CROSS_FIT_STRENGTHS", (0.1,))
    both = linear_probe.cross_fit(last_layer(features), labels, divisions).probabilities[:60]
    each = [linear_probe.cross_fit(last_layer(features), labels, [fold]).probabilities[:60] for fold in divisions]
    np.testing.assert_allclose(both, np.mean(each, axis=0))
    fold = divisions[0]
    fitted = Regression(0.1).fit(features[fold != 1], labels[fold != 1])
    np.testing.assert_allclose(each[0][fold[:60] == 1], fitted.predict_proba(features[:60][fold[:60] == 1]))


def test_held_out_losses_are_those_of_probes_fitted_to_the_others():
    features, labels = gaussians(90, 3)
    losses = linear_probe.held_out_losses(features, labels, seed=4)
    fold = np.random.default_rng(4).permutation(90) % 3
    candidates = []
    for strength in linear_probe.CROSS_FIT_STRENGTHS:
        fits = [scikit_learn((features[fold != out], labels[fold != out]), strength) for out in range(3)]
        given = [fits[fold[row]].predict_proba(features[[row]].astype(float))[0, labels[row]] for row in range(90)]
        candidates.append(-np.log(given))
    assert any(np.allclose(losses, expected, atol=2e-2) for expected in candidates)


def test_the_only_image_of_its_class_has_the_largest_loss():
    features, labels = gaussians(60, 2)
    labels[7] = 2
    losses = linear_probe.held_out_losses(features, labels, seed=0)
    assert np.isfinite(losses).all() and losses.argmax() == 7


def test_held_out_losses_of_labels_are_means_over_the_labels():
    features, labels = gaussians(60, 2)
    several = np.stack([labels, 1 - labels], axis=1)
    each = linear_probe.held_out_losses(features, several[:, :1], seed=2)
    assert np.allclose(linear_probe.held_out_losses(features, several, seed=2), each, atol=1e-3)


def blocks_of(count: int, told_by: str, seed: int = 0) -> tuple[FeatureBlocks, np.ndarray]:
    """Labels that one block of features tells and the other, of noise, does not; the scales differ."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    parts = {name: rng.normal(size=(count, width)) for name, width in ((LAST, 8), (MEANS, 32), (GRIDS, 72))}
    parts[told_by][:, 0] += 2 * labels
    return FeatureBlocks({name: (7 * values).astype(np.float32) for name, values in parts.items()}), labels


@pytest.mark.parametrize("told_by", [LAST, MEANS, GRIDS])
def test_held_out_folds_choose_the_blocks_that_tell_the_labels(told_by: str) -> None:
    features, labels = blocks_of(240, told_by)
    fit = linear_probe.cross_fit(features, labels, [np.arange(240) % 3])
    assert fit.blocks == ((LAST,) if told_by == LAST else (LAST, told_by))
    assert fit.loss == fit.losses[fit.blocks] <= min(fit.losses.values())
    given = fit.probabilities[np.arange(240), labels]
    assert -np.log(given).mean() == pytest.approx(fit.loss)
    both = linear_probe.cross_fit(features, np.column_stack([labels, labels]), [np.arange(240) % 3])
    assert both.blocks == fit.blocks


def test_each_block_counts_as_much_as_the_last_layer_however_wide_it_is() -> None:
    features, labels = blocks_of(120, MEANS)
    regression = Regression(0.1, features.scales((LAST, MEANS)))
    values = features.side_by_side((LAST, MEANS))
    by_hand = StandardScaler().fit_transform(values.astype(np.float64))
    by_hand[:, 8:] *= np.sqrt(8 / 32)
    expected = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(by_hand, labels).predict_proba(by_hand)
    np.testing.assert_allclose(regression.fit(values, labels).predict_proba(values), expected, atol=2e-3)
    head = fit_head((values, labels), (values, labels), 2, scales=regression.scales)
    model = Regression(head.strength, regression.scales).fit(values, labels)
    np.testing.assert_allclose(softmax(head.logits(values), axis=1), model.predict_proba(values), atol=1e-4)


def test_the_last_layer_alone_is_fitted_as_without_blocks() -> None:
    features, labels = blocks_of(120, LAST)
    probabilities = [
        Regression(0.1, scales).fit(features.last, labels).predict_proba(features.last)
        for scales in (None, features.scales((LAST,)))
    ]
    np.testing.assert_array_equal(*probabilities)


def test_labels_that_may_be_wrong_do_not_speak_for_the_layer_that_sees_them_so() -> None:
    """The means tell the true labels; a twentieth is flipped, as the last layer shows, less clearly."""
    features, true = blocks_of(600, MEANS)
    labels = np.where(np.arange(600) % 20 == 3, 1 - true, true)
    features.parts[MEANS][:, 0] += 21 * true
    features.parts[LAST][:, 0] = np.random.default_rng(1).normal(size=600) + 2.35 * labels
    chosen = {
        share: linear_probe.cross_fit(features, labels, [np.arange(600) % 4], [(LAST,), (MEANS,)], share).blocks
        for share in (0, 0.1)
    }
    assert chosen == {0: (LAST,), 0.1: (MEANS,)}
