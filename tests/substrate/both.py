"""What is computed with TensorFlow and with JAX, by the same text, and compared.

    python tests/substrate/both.py

stores what TensorFlow gives in `tests/data/both_backends.npz`, for an environment that lacks it.
"""

import functools
import importlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "both_backends.npz"
D = 7
# Two numbers of which all parameters are functions.
POINT = np.array([0.3, 0.6])
RNG = np.random.default_rng(0)
X, Y, NOISE = RNG.normal(size=(3, D)), RNG.normal(size=D), np.linspace(0.1, 2.0, D)
DRAWS = RNG.normal(size=(5, D)).cumsum(axis=-1)
OBSERVED = np.array([1, 0, 0, 1, 1, 0, 1], bool)
LONG = RNG.normal(size=600)
COUNTS = np.arange(D) * 1.0


class Backend(NamedTuple):
    name: str
    package: Any
    tf: Any
    tfp: Any

    def constant(self, x, dtype=np.float64):
        return self.tf.constant(np.asarray(x, dtype))


def tensorflow():
    import tensorflow as tf
    import tensorflow_probability as tfp

    import tfp_ar1

    return Backend("tensorflow", tfp_ar1, tf, tfp)


def jax():
    """Raises `ImportError` where TFP has no substrate for the version of JAX."""
    library = importlib.import_module("tfp_ar1_jax")
    tfp = importlib.import_module("tensorflow_probability.substrates.jax")
    return Backend("jax", library, tfp.tf2jax, tfp)


def member(b, name, p, d=D):
    """A member of the family with the parameters p, `[2]`."""
    tf, c, along = b.tf, b.constant, np.arange(d) / d
    loc, scale = c(np.linspace(0.0, 1.0, d)), tf.exp(p[0])
    if name == "AR1":
        return b.package.MultivariateNormalAR1(loc, scale, fisher_z=p[1])
    if name == "AR1 by correlation":
        return b.package.MultivariateNormalAR1(loc, scale, correlation=tf.tanh(-p[1]))
    scales = tf.exp(p[0] * c(along))
    if name == "ARH1":
        return b.package.MultivariateNormalARH1(loc, scales, fisher_z=p[1])
    if name == "ANTE1":
        steps = p[1] * c(np.linspace(-1.0, 1.0, d - 1))
        return b.package.MultivariateNormalANTE1(loc, scales, fisher_z=steps)
    times = c(np.cumsum(np.linspace(0.1, 2.0, d)))
    return b.package.MultivariateNormalOU(loc, scale, length_scale=tf.exp(p[1]), times=times)


MEMBERS = ("AR1", "AR1 by correlation", "ARH1", "ANTE1", "OU")


def of_member(name):
    def values(b, p):
        tfd, c, d = b.tfp.distributions, b.constant, member(b, name, p)
        kl = tfd.kl_divergence
        unit = tfd.MultivariateNormalDiag(c(np.zeros(D)), c(np.ones(D)))
        tril = tfd.MultivariateNormalTriL(c(np.zeros(D)), c(np.eye(D) + 0.1 * np.tri(D, k=-1)))
        low_rank = tfd.MultivariateNormalDiagPlusLowRank(
            scale_diag=c(np.ones(D)), scale_perturb_factor=c(0.3 * X[:2].T)
        )
        other = b.package.MultivariateNormalAR1(c(np.zeros(D)), c(1.3), fisher_z=c(0.4))
        precision, conditional = d.precision(), d.conditional(c(X), OBSERVED)
        noisy, sites = d.with_observation_noise(c(NOISE)), d.with_sites(c(Y), c(NOISE))
        long = member(b, name, p, len(LONG))
        return {
            "log_prob": d.log_prob(c(X)),
            "log_prob, long": long.log_prob(c(LONG)),
            "entropy": d.entropy(),
            "mean": d.mean(),
            "stddev": d.stddev(),
            "covariance": d.covariance(),
            "marginal": d.marginal(1, 6, 2).log_prob(c(X[:, 1:6:2])),
            "marginals": d.marginals().log_prob(c(X)),
            "coefficients": d.coefficients + d.innovation_scale,
            "KL to diagonal": kl(d, unit),
            "KL of diagonal": kl(unit, d),
            "KL to member": kl(d, other),
            "KL of member": kl(other, d),
            "KL to sample": kl(d, tfd.Sample(tfd.Normal(c(0.0), c(1.0)), D)),
            "KL to triangular": kl(d, tril),
            "KL of triangular": kl(tril, d),
            "KL to low rank": kl(d, low_rank),
            "KL of low rank": kl(low_rank, d),
            "matvec": d.scale.matvec(c(Y)),
            "matvec, long": long.scale.matvec(c(LONG)),
            "matvec, adjoint, long": long.scale.matvec(c(LONG), adjoint=True),
            "solvevec": d.scale.solvevec(c(Y)),
            "solvevec, adjoint": d.scale.solvevec(c(Y), adjoint=True),
            "scale": d.scale.to_dense() + d.scale.trace() + d.scale.log_abs_determinant(),
            "precision": precision.to_dense() + precision.log_abs_determinant(),
            "precision, products": precision.matvec(c(Y)) + precision.solvevec(c(Y)),
            "precision, factor": precision.cholesky().to_dense(),
            "precision, inverse": precision.inverse().diag_part(),
            "conditional": conditional.mean() + conditional.stddev(),
            "conditional, covariance": conditional.covariance(),
            "conditional, observed": conditional.observed_log_prob(),
            "conditional, entropy": conditional.entropy(),
            "noisy": noisy.log_prob(c(X)),
            "noisy, long": long.with_observation_noise(c(0.5)).log_prob(c(LONG)),
            "noisy, posterior": noisy.posterior(c(X)).mean() + noisy.posterior(c(X)).stddev(),
            "noisy, KL": kl(noisy.posterior(c(X)), d),
            "sites": sites.log_normalizer() + sites.kl_divergence(),
            "sites, posterior": sites.posterior().covariance(),
        }

    return values


def of_forecasts(b, p):
    c, path = b.constant, member(b, "AR1", p)
    ou, known = member(b, "OU", p), path.posterior(c(X), c(NOISE))
    later = ou.forecast(ou.conditional(c(X), OBSERVED), times=c(20.0 + np.arange(3.0)))
    return {
        "AR1": path.forecast(known, 3).covariance(),
        "OU": later.mean() + later.stddev(),
    }


def of_inference(b, p):
    tfd, c, path = b.tfp.distributions, b.constant, member(b, "AR1", p)

    def poisson(x):
        return tfd.Poisson(log_rate=x).log_prob(c(COUNTS))

    def student(x):
        return tfd.StudentT(c(4.0), x, b.tf.exp(-p[0])).log_prob(c(3.0 * Y))

    concave, other = (
        b.package.inference.laplace_approximation(path, f, OBSERVED) for f in (poisson, student)
    )
    variational = b.package.inference.natural_gradient_vi(path, poisson)
    return {
        "Laplace": concave.log_evidence,
        "Laplace, not concave": other.log_evidence,
        "Laplace, posterior": concave.posterior.mean() + concave.posterior.stddev(),
        "variational, first derivatives": variational.elbo,
    }


def of_constructors(b, p):
    tfd, c, library, one = b.tfp.distributions, b.constant, b.package, b.constant(1.0)
    ante1, unit = library.MultivariateNormalANTE1, b.constant(np.ones(D))
    scale = b.tf.exp(p[0])
    walk = tfd.MarkovChain(
        tfd.Normal(c(0.2), scale), lambda _, x: tfd.Normal(p[1] * x + 0.1, scale), num_steps=D
    )
    level = b.tfp.sts.LocalLevelStateSpaceModel(
        D,
        level_scale=scale,
        observation_noise_scale=b.tf.exp(p[1]),
        initial_state_prior=tfd.MultivariateNormalDiag(scale_diag=c([2.0])),
    )
    steps = b.constant(np.ones(D - 1))
    made = {
        "transitions": ante1.from_transitions(c(Y), p[1] * steps, scale, one),
        "precision": ante1.from_precision(None, (2.0 + scale) * unit, p[1] * steps),
        "precision factor": ante1.from_precision_cholesky(None, scale * unit, p[1] * steps),
        "Markov chain": ante1.from_markov_chain(walk),
        "state space model": ante1.from_state_space_model(level),
        "noisy state space model": library.sts.noisy_chain(level),
        "innovation scale": library.MultivariateNormalAR1.from_innovation_scale(
            c(Y), scale, fisher_z=p[1]
        ),
    }
    for family in ("ar1", "arh1", "ante1"):
        packed = p[0] * c(np.linspace(-1.0, 1.0, library.params.params_size(D, family)))
        made[f"packed {family}"] = library.params.new(packed, D, family=family)
    return {name: d.log_prob(c(X)) for name, d in made.items()}


@functools.cache
def configs(b):
    """Of the members as priors: made of numbers that are known, which those under `jit` are not."""
    priors = {name: member(b, name, b.constant(POINT)) for name in MEMBERS}
    return {name: json.dumps(b.package.priors.to_config(d)) for name, d in priors.items()}


def of_priors(b, p):
    from_config, kl = b.package.priors.from_config, b.package.priors.kl_divergence
    return {
        name: kl(member(b, name, p), from_config(json.loads(config)))
        for name, config in configs(b).items()
    }


def selected(b, p):
    """Little of each kind: compiling derivatives takes long."""
    c, result = b.constant, {}
    for name in ("AR1", "OU"):
        d = member(b, name, p)
        result[f"log_prob, {name}"] = d.log_prob(c(X))
        result[f"matvec, {name}"] = b.tf.square(d.scale.matvec(c(Y)))
    return {
        **result,
        "conditional": d.conditional(c(X), OBSERVED).observed_log_prob(),
        "noisy": d.with_observation_noise(c(NOISE)).log_prob(c(X)),
    }


def of_fits(b, p):
    draws, made = b.constant(DRAWS), b.package
    known = {"times": b.constant(np.arange(D)), "observed": OBSERVED, "shared_loc": True}
    fits = [
        made.MultivariateNormalAR1.experimental_fit(draws),
        made.MultivariateNormalANTE1.experimental_fit(draws),
        made.MultivariateNormalOU.experimental_fit(draws, **known),
    ]
    return {f"{i}": d.log_prob(draws) + 0.0 * p[0] for i, d in enumerate(fits)}


CASES = {
    **{name: of_member(name) for name in MEMBERS},
    "forecasts": of_forecasts,
    "inference": of_inference,
    "constructors": of_constructors,
    "priors": of_priors,
    "selected": selected,
}


def with_derivatives_in_tensorflow(case):
    """The values, `{name: array}`, and the derivatives of their sums: `[names, 2 (, 2)]`."""
    b = tensorflow()
    p = b.constant(POINT)
    with b.tf.GradientTape(persistent=True) as outer:
        outer.watch(p)
        with b.tf.GradientTape(persistent=True) as inner:
            inner.watch(p)
            values = case(b, p)
            sums = [b.tf.reduce_sum(x) for x in values.values()]
        first = [inner.gradient(x, p, unconnected_gradients="zero") for x in sums]
        entries = [b.tf.unstack(x) for x in first]
    zero = {"unconnected_gradients": "zero"}
    second = [[outer.gradient(x, p, **zero) for x in row] for row in entries]
    return {k: np.asarray(x) for k, x in values.items()}, np.array(first), np.array(second)


def main():
    stored = {}
    for name, case in CASES.items():
        values, first, second = with_derivatives_in_tensorflow(case)
        stored |= {f"{name}/{key}": x for key, x in values.items()}
        stored |= {f"{name}//1": first, f"{name}//2": second}
    fits = of_fits(tensorflow(), tensorflow().constant(POINT))
    stored |= {f"fits/{key}": np.asarray(x) for key, x in fits.items()}
    np.savez_compressed(REFERENCE, **stored)


if __name__ == "__main__":
    main()
