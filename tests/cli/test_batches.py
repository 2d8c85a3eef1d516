"""The order of the training data: what a step trains on, whoever reads it and from wherever."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_ar1_cli.data import series
from tfp_ar1_cli.training.batches import Batches

X = np.arange(10, dtype=np.float32)[:, None]


def epoch_of(batches, epoch):
    steps = batches.steps_per_epoch
    return [batches.share(epoch * steps + i)[0].ravel() for i in range(steps)]


def test_every_epoch_has_an_order_of_its_own():
    def orders(seed):
        batches = Batches(X, 4, seed)
        assert batches.steps_per_epoch == 3
        for epoch in range(3):
            parts = epoch_of(batches, epoch)
            assert [len(part) for part in parts] == [4, 4, 2]
            yield tuple(np.concatenate(parts).tolist())

    first = list(orders(0))
    assert all(sorted(order) == list(range(10)) for order in first)
    assert len(set(first)) == 3
    assert list(orders(0)) == first
    assert set(orders(1)).isdisjoint(first)


@pytest.mark.parametrize("replicas", [1, 2, 3, 6])
def test_shares_make_up_the_batch(replicas):
    batches = Batches(X, 4, seed=0)
    for step in range(6):
        (whole,) = batches.share(step)
        shares = [batches.share(step, replica, replicas)[0] for replica in range(replicas)]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_steps_of_series_are_hidden_alike_for_every_share():
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(10, 8, 2)).astype("float32"), "length": np.full(10, 8, np.int32)}
    batches = Batches(x, 4, seed=3, hide=0.9)
    hidden = 0
    for step in range(3):
        length, values = batches.share(step)  # in the order of the names
        np.testing.assert_array_equal(length, 8)
        hidden += np.isnan(values).sum()
        shares = [batches.share(step, replica, 2) for replica in range(2)]
        np.testing.assert_array_equal(np.concatenate([s[1] for s in shares]), values)
    assert hidden > 0
    # The first batch by hand.
    chosen = np.random.default_rng([3, 0]).permutation(10)[:4]
    by_hand = series.hide({k: v[chosen] for k, v in x.items()}, 0.9, [3, 0, 0])
    np.testing.assert_array_equal(batches.share(0)[1], by_hand["x"])


def test_a_dataset_begins_at_any_step():
    def steps(first, number):
        batches = Batches(X, 4, seed=0)
        dataset = batches.dataset(first, tf.distribute.get_strategy())
        return [batch.numpy().ravel().tolist() for (batch,) in dataset.take(number)]

    uninterrupted = steps(0, 9)
    assert uninterrupted[:3] == [part.tolist() for part in epoch_of(Batches(X, 4, 0), 0)]
    for first in (1, 3, 7):
        assert steps(first, 9 - first) == uninterrupted[first:]
    (spec,) = Batches(X, 4, seed=0).dataset(0, tf.distribute.get_strategy()).element_spec
    assert spec == tf.TensorSpec([None, 1], tf.float32)


def test_validation_is_in_order():
    x = {"x": X, "length": np.arange(10, dtype=np.int32)}
    fit = Batches(X, 4, seed=0).validation(x, tf.distribute.get_strategy())
    batches = [batch for (batch,) in fit["validation_data"].as_numpy_iterator()]
    assert [len(batch["length"]) for batch in batches] == [4, 4, 2]
    for name, array in x.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), array)


def test_errors_of_the_data_are_kept():
    class Broken:
        shape, dtype, ndim = (4, 1), np.dtype(np.float32), 2

        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise ValueError("record 3 of shard 2")

    batches = Batches(Broken(), 2, seed=0)
    with pytest.raises(ValueError, match=r"^record 3 of shard 2$"), batches.own_errors():
        next(iter(batches.dataset(0, tf.distribute.get_strategy())))
    with pytest.raises(tf.errors.InternalError), Batches(X, 4, seed=0).own_errors():
        raise tf.errors.InternalError(None, None, "of TensorFlow's own")
