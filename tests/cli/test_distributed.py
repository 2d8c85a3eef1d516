"""Replicas and workers: the same training as on one device, each with noise of its own."""

import sys

import keras
import numpy as np
import pytest
import workers

import tfp_ar1
from tfp_ar1.vae import architectures

SECONDS = 240  # for each of the trainings below, most of it for the import of TensorFlow

# One training, on whatever it is told. The latents are not random here but functions of the data,
# so that every way to share a batch out has the same ones. The last batch, of 1, leaves nothing for
# the second replica.
TRAIN = """
import json, os, sys
import numpy as np
import tensorflow as tf
import keras

kind, out = sys.argv[1:]
if kind == "mirrored":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
elif kind == "multiworker":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()

import tfp_ar1
from tfp_ar1_cli.training.batches import Batches
from tfp_ar1.vae import architectures, objectives, sequence_networks


class FixedNoise(objectives.Objective):
    def __call__(self, model, x, training):
        posterior = model.encode(x, training=training)
        flat = tf.reshape(x, [tf.shape(x)[0], -1])[:, : tf.reduce_prod(posterior.event_shape)]
        noise = tf.reshape(tf.cos(40 * flat), [-1, *model.latent_shape])
        z = posterior.mean() + posterior.scale.matvec(noise)
        log_p = model.likelihood.log_prob(x, model.decoder_outputs(z, training=training))
        kl = model.kl_to_prior(posterior, x)
        return objectives.Terms(kl - log_p, -log_p, kl, model.posterior_correlation(posterior, x))


def image_model():
    networks = architectures.mlp((4, 4), 3, hidden_units=(8,))
    return tfp_ar1.RhoVAE(*networks, 3, objective=FixedNoise(), seed=0)


def sequence_model():
    networks = sequence_networks.convolutional((12, 2), 1, filters=(4, 4))
    return tfp_ar1.SequenceVAE(*networks, 1, 12, objective=FixedNoise(), seed=0)


results = {}
for name, new, shape in (
    ("image", image_model, (17, 4, 4)),
    ("sequence", sequence_model, (17, 12, 2)),
):
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    for feed in ("array", "pipeline"):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = new()
            model.compile(keras.optimizers.Adam(0.01))
        if feed == "array":
            data = {"x": x, "batch_size": 8, "shuffle": False}
        else:
            data = {"x": Batches(x, 8, seed=0).dataset(0, strategy), "steps_per_epoch": 3}
        history = model.fit(**data, epochs=2, verbose=0, validation_data=(x[:9],)).history
        for i, weight in enumerate(model.get_weights()):
            results[f"{name}-{feed}-weight-{i}"] = weight
        for key, values in history.items():
            results[f"{name}-{feed}-{key}"] = np.ravel(values)


def noise():
    return tf.random.stateless_normal([1, 1000], model.next_seed())

for name in ("noise", "noise again"):
    drawn = strategy.run(noise)
    results[name] = drawn.numpy() if kind == "none" else strategy.gather(drawn, axis=0).numpy()

if kind == "multiworker":
    # Whether Keras still needs our overrides: each is left out in turn. The second is for batches
    # that are shared unevenly; after it failed, collective operations fail for good.
    from tfp_ar1._keras_backend import MultiWorkerMixin

    for override in ("_make_function", "_maybe_symbolic_build"):
        ours = getattr(MultiWorkerMixin, override)
        delattr(MultiWorkerMixin, override)
        with strategy.scope():
            model = image_model()
            model.compile(keras.optimizers.Adam(0.01))
        try:
            model.fit(x=np.zeros((15, 4, 4), "float32"), batch_size=16, verbose=0)
            results[f"needs {override}"] = np.array(False)
        except Exception as error:
            results[f"needs {override}"] = np.array(True)
        setattr(MultiWorkerMixin, override, ours)
np.savez(out, **results)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the trainings gave: without a strategy, on two replicas, and on each of two workers."""
    folder = tmp_path_factory.mktemp("distributed")
    results = {}

    def finish(processes):
        for name, process in processes.items():
            output, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, output[-4000:]
            with np.load(folder / f"{name}.npz") as file:
                results[name] = dict(file)

    def start(kind, name, *tf_config):
        command = [sys.executable, "-c", TRAIN, kind, str(folder / f"{name}.npz")]
        return {name: workers.start(command, *tf_config)}

    for kind in ("none", "mirrored"):
        finish(start(kind, kind))
    first, second = workers.tf_configs(2)
    finish(start("multiworker", "worker0", first) | start("multiworker", "worker1", second))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("other", ["mirrored", "worker0", "worker1"])
def test_all_strategies_train_alike(trained, other):
    one, several = trained["none"], trained[other]
    compared = [key for key in one if key.startswith(("image", "sequence"))]
    assert len(compared) > 40
    for key in compared:
        np.testing.assert_allclose(
            several[key], one[key], rtol=2e-4, atol=2e-5, err_msg=f"{other}: {key}"
        )
    for name in ("image", "sequence"):  # They did train.
        first, second = one[f"{name}-array-loss"]
        assert second < first - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mirrored", "worker0"])
def test_every_replica_draws_noise_of_its_own(trained, kind):
    draws = np.concatenate([trained[kind]["noise"], trained[kind]["noise again"]])
    assert draws.shape == (4, 1000)
    correlations = np.corrcoef(draws) - np.eye(4)
    # Five standard errors of what is independent.
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(1000)
    np.testing.assert_allclose(np.std(draws, axis=1), 1, atol=0.12)


@pytest.mark.slow
def test_noise_is_that_of_the_replica_not_of_the_worker(trained):
    """Two workers of one replica draw what two replicas of one worker do."""
    for key in ("noise", "noise again"):
        np.testing.assert_array_equal(trained["worker0"][key], trained["mirrored"][key])
        np.testing.assert_array_equal(trained["worker0"][key], trained["worker1"][key])


@pytest.mark.slow
@pytest.mark.parametrize("override", ["_maybe_symbolic_build", "_make_function"])
def test_keras_still_needs_our_overrides(trained, override):
    assert trained["worker0"][f"needs {override}"], (
        f"Keras {keras.__version__} trains with several workers without "
        f"`MultiWorkerMixin.{override}`: remove it, and raise the lower bound of Keras."
    )


@pytest.mark.slow
def test_a_cluster_of_one_worker(tmp_path):
    """Keras takes what its steps report as that of a model without a strategy."""
    command = [sys.executable, "-m", "tfp_ar1", "train", "--hidden-units", "4", "--epochs", "1"]
    command += ["--num-importance-samples", "2", "--strategy", "multiworker"]
    process = workers.start([*command, "--out", str(tmp_path / "run")], *workers.tf_configs(1))
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output[-4000:]
    assert "epoch 1/1" in output


@pytest.mark.parametrize("option", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_what_keras_cannot_do_on_several_replicas(monkeypatch, option):
    class Strategy:
        num_replicas_in_sync = 2

    encoder, decoder = architectures.mlp((4,), 2, hidden_units=(3,))
    model = tfp_ar1.RhoVAE(encoder, decoder, 2)
    monkeypatch.setattr(type(model), "distribute_strategy", Strategy())
    with pytest.raises(ValueError, match=f"several replicas with `{next(iter(option))}="):
        model.compile(**option)
    model.compile(steps_per_execution=None)
    assert model.jit_compile is False
