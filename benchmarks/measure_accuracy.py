"""Measures the rounding errors of `tfp_ar1` and writes them as JSON and as a Markdown table.

    python benchmarks/measure_accuracy.py

Every operation is compared, in float32 and in float64, with decimals of 120 digits that get the
very same floating-point inputs. Besides the value, the decimals give the *terms* of each result:
the sum of the absolute values of what is added up to get it, each times how far a rounding error of
its own arguments is magnified. An error is stated relative to the value itself, and in units of
rounding errors (the dtype's eps) of the terms; the second is what an implementation can be held to,
because it allows for the cancellation in the result, and not for any inside the computation.

The tests import the references from here.
"""

from __future__ import annotations

import argparse
import decimal
import functools
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- begin: benchmarks/measure_accuracy.py -->", "<!-- end -->"

DTYPES = ("float32", "float64")
CONTEXT = decimal.Context(prec=120, Emin=-(10**6), Emax=10**6)
_LOG_TWO_PI = decimal.Decimal("1.83787706640934548356065947281123527972279494727556682563430")

# --- References: decimals, coordinate by coordinate ------------------------------------------


class Exact(NamedTuple):
    """A result and the size of its terms, as float64 arrays of the same shape."""

    value: np.ndarray
    terms: np.ndarray


def _decimal(x: Any) -> decimal.Decimal:
    return x if isinstance(x, decimal.Decimal) else decimal.Decimal(float(x))


def _decimals(x: Any) -> np.ndarray:
    flat = [_decimal(v) for v in np.ravel(x)]
    return np.array(flat, dtype=object).reshape(np.shape(x))


def _exact(value: Any, terms: Any) -> Exact:
    return Exact(np.asarray(value, np.float64), np.asarray(terms, np.float64))


def _run(coefficient: Any, x: np.ndarray) -> np.ndarray:
    """`y_t = coefficient y_{t-1} + x_t`."""
    y = x.copy()
    for t in range(1, len(y)):
        y[t] = coefficient * y[t - 1] + x[t]
    return y


class Path:
    """One AR(1) normal in decimals. Must be used with `CONTEXT`.

    Derivatives are with respect to u = atanh ρ; times `chain`, to the parameter that was given.
    """

    def __init__(self, by: str, scale: Any, corr: Any):
        given = _decimal(corr)
        self.scale = _decimal(scale)
        self.sign = -1 if given < 0 else 1
        size = abs(given)
        ratio = (2 * size).exp() if by == "fisher_z" else (1 + size) / (1 - size)
        self.rho = self.sign * (ratio - 1) / (ratio + 1)
        self.step = 2 * ratio.sqrt() / (ratio + 1)  # √(1 - ρ²)
        self.near = 1 / ratio.sqrt()  # (1 - |ρ|) / √(1 - ρ²)
        self.signed_one_minus_abs = 2 * self.sign / (ratio + 1)  # sign - ρ
        self.chain = 1 / self.step**2 if by == "correlation" else 1
        self.log_size = 1 + abs(2 * self.scale.ln())  # of log σ² and its rounding error
        self.log_step_size = self.log_size + abs(2 * self.step.ln())

    def unfold(self, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """L ε and its derivative, at marginal scale 1."""
        return self._unfold(noise, self.rho)

    def unfold_terms(self, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """|L| |ε| and the absolute values of the derivative's terms, at marginal scale 1."""
        return self._unfold(abs(noise), abs(self.rho), -1)

    def _unfold(self, noise: np.ndarray, rho: Any, sign: int = 1) -> tuple[np.ndarray, np.ndarray]:
        x = noise * self.step
        x[:1] = noise[:1]
        y = _run(rho, x)
        slope = np.full_like(y, decimal.Decimal(0))
        slope[1:] = self.step**2 * y[:-1] - sign * rho * self.step * noise[1:]
        return y, _run(rho, slope)

    def unfold_adjoint(self, g: np.ndarray, rho: Any) -> np.ndarray:
        """Lᵀ g at marginal scale 1."""
        y = _run(rho, g[::-1])[::-1] * self.step
        y[:1] /= self.step
        return y

    def whiten(self, w: np.ndarray, rounded: bool = False) -> tuple[np.ndarray, ...]:
        """L⁻¹ w, its derivative, and the terms of both.

        Terms are those of `(w_t - sign w_{t-1}) / √(1-ρ²) + sign e^-|u| w_{t-1}`, the sum that does
        not cancel: with `rounded`, those of rounding errors in w itself, too.
        """
        e, slope = w.copy(), np.full_like(w, decimal.Decimal(0))
        terms, slope_terms = abs(w), slope.copy()
        earlier, later = w[:-1], w[1:]
        e[1:] = (later - self.rho * earlier) / self.step
        slope[1:] = self.rho * e[1:] - self.step * earlier
        difference = abs(later - self.sign * earlier) / self.step
        if rounded:
            difference += (abs(earlier) + abs(later)) / self.step
        rest = self.near * abs(earlier)
        terms[1:] = difference + rest
        slope_terms[1:] = abs(self.rho) * difference + rest
        return tuple(a / self.scale for a in (e, slope, terms, slope_terms))

    def whiten_adjoint(self, g: np.ndarray) -> tuple[np.ndarray, ...]:
        """L⁻ᵀ g, its derivative, and the terms of both."""
        later = np.append(g[1:], decimal.Decimal(0))
        value = (g - self.rho * later) / self.step
        slope = self.rho * value - self.step * later
        difference, rest = abs(g - self.sign * later) / self.step, self.near * abs(later)
        terms, slope_terms = difference + rest, abs(self.rho) * difference + rest
        # The first row is that of the first column of L⁻¹, where g is not divided by the step.
        value[0] = g[0] - self.rho * later[0] / self.step
        terms[0] = abs(g[0]) + abs(self.rho * later[0]) / self.step
        slope[0] = -later[0] / self.step
        slope_terms[0] = abs(slope[0])
        return tuple(a / self.scale for a in (value, slope, terms, slope_terms))

    def rounded_adjoint(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """L⁻ᵀ g, with the terms of a sum over products that are rounded one by one."""
        value, *_ = self.whiten_adjoint(g)
        terms = abs(g) / self.step
        terms[:1] = abs(g[:1])
        terms[:-1] += abs(g[1:]) / self.step
        return value, terms / self.scale

    def quadratic(self, w: np.ndarray, rounded: bool) -> dict[str, Exact]:
        """`½ |L⁻¹ w|²` and its derivatives."""
        e, slope, terms, slope_terms = self.whiten(w, rounded)
        back, _ = self.rounded_adjoint(e)
        _, back_terms = self.rounded_adjoint(terms)
        return {
            "value": ((e**2).sum() / 2, (terms**2).sum() / 2),
            "scale": (-(e**2).sum() / self.scale, (terms**2).sum() / self.scale),
            "corr": (self.chain * (e * slope).sum(), self.chain * (terms * slope_terms).sum()),
            "w": (back, back_terms),
        }


# Cached, because 120 digits of them take long, and large cases repeat a few arguments.
_ln = functools.lru_cache(maxsize=1000)(decimal.Decimal.ln)


@functools.lru_cache(maxsize=1000)
def _excess(log_ratio: Any, log_size: Any) -> tuple[Any, ...]:
    """`exp(v) - 1 - v` and its derivative, each with its terms; v is rounded by `log_size`."""
    ratio = log_ratio.exp()
    slope = ratio - 1
    return (
        slope - log_ratio,
        abs(slope) * log_size + abs(log_ratio),
        slope,
        ratio * log_size + abs(slope),
    )


def _weights(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return np.ones_like(x) if weights is None else _decimals(weights)


def reference_matvec(by, scale, corr, x, weights=None):
    """L x, or a draw of noise x."""
    p, x = Path(by, scale, corr), _decimals(x)
    g = _weights(x, weights)
    (y, slope), (terms, slope_terms) = p.unfold(x), p.unfold_terms(x)
    back, back_terms = p.unfold_adjoint(g, p.rho), p.unfold_adjoint(abs(g), abs(p.rho))
    chain = p.scale * p.chain
    return {
        "value": _exact(p.scale * y, p.scale * terms),
        "scale": _exact((g * y).sum(), (abs(g) * terms).sum()),
        "corr": _exact(chain * (g * slope).sum(), chain * (abs(g) * slope_terms).sum()),
        "x": _exact(p.scale * back, p.scale * back_terms),
    }


def reference_matvec_adjoint(by, scale, corr, x, weights=None):
    """Lᵀ x, whose derivatives are those of L with x and the weights exchanged."""
    result = reference_matvec(by, scale, corr, np.ones_like(x) if weights is None else weights, x)
    return {**result, "value": result["x"], "x": result["value"]}


def reference_solvevec(by, scale, corr, x, weights=None):
    """L⁻¹ x."""
    p, x = Path(by, scale, corr), _decimals(x)
    g = _weights(x, weights)
    e, slope, terms, slope_terms = p.whiten(x)
    return {
        "value": _exact(e, terms),
        "scale": _exact(-(g * e).sum() / p.scale, (abs(g) * terms).sum() / p.scale),
        "corr": _exact(p.chain * (g * slope).sum(), p.chain * (abs(g) * slope_terms).sum()),
        "x": _exact(*p.rounded_adjoint(g)),
    }


def reference_solvevec_adjoint(by, scale, corr, x, weights=None):
    """L⁻ᵀ x."""
    p, x = Path(by, scale, corr), _decimals(x)
    g = _weights(x, weights)
    value, slope, terms, slope_terms = p.whiten_adjoint(x)
    # The products that a gradient sums up are rounded one by one.
    e, _, e_terms, _ = p.whiten(g, rounded=True)
    return {
        "value": _exact(value, terms),
        "scale": _exact(-(g * value).sum() / p.scale, (abs(g) * terms).sum() / p.scale),
        "corr": _exact(p.chain * (g * slope).sum(), p.chain * (abs(g) * slope_terms).sum()),
        "x": _exact(e, e_terms),
    }


def reference_log_prob(by, loc, scale, corr, x):
    """The log-density of x."""
    p, size = Path(by, scale, corr), len(x)
    w = _decimals(x) - _decimals(loc)
    quadratic = p.quadratic(w, bool(np.any(loc)))
    d_w, d_w_terms = quadratic["w"]
    logs = (size * p.scale.ln(), (size - 1) * p.step.ln(), size * _LOG_TWO_PI / 2)
    later = (size - 1) * p.rho * p.chain
    return {
        "value": _exact(
            -quadratic["value"][0] - sum(logs),
            quadratic["value"][1] + sum(abs(term) for term in logs),
        ),
        "loc": _exact(d_w, d_w_terms),
        "scale": _exact(
            -quadratic["scale"][0] - size / p.scale, quadratic["scale"][1] + size / p.scale
        ),
        "corr": _exact(later - quadratic["corr"][0], quadratic["corr"][1] + abs(later)),
        "x": _exact(-d_w, d_w_terms),
    }


def reference_entropy(by, scale, corr, size):
    """The entropy."""
    p = Path(by, scale, corr)
    terms = (size * p.scale.ln(), (size - 1) * p.step.ln(), size * (1 + _LOG_TWO_PI) / 2)
    slope = -(size - 1) * p.rho * p.chain
    return {
        "value": _exact(sum(terms), sum(abs(term) for term in terms)),
        "scale": _exact(size / p.scale, size / p.scale),
        "corr": _exact(slope, abs(slope)),
    }


def reference_kl_ar1_ar1(by, loc, scale, corr, other_loc, other_scale, other_corr):
    """KL(AR1 ‖ other AR1)."""
    p, q, later = Path(by, scale, corr), Path(by, other_scale, other_corr), len(loc) - 1
    v = 2 * (p.scale / q.scale).ln()
    first, first_terms, first_slope, first_slope_terms = _excess(v, p.log_size + q.log_size)
    step, step_terms, step_slope, step_slope_terms = _excess(
        v + 2 * (p.step / q.step).ln(), p.log_step_size + q.log_step_size
    )
    # The signs are exact: they cost nothing where they are equal.
    ends = abs(p.sign - q.sign) + abs(p.signed_one_minus_abs) + abs(q.signed_one_minus_abs)
    ratio = p.scale / (q.scale * q.step)
    drift, drift_terms = (p.rho - q.rho) * ratio, ends * ratio
    square_terms = abs(drift) * drift_terms
    quadratic = q.quadratic(_decimals(loc) - _decimals(other_loc), np.any(loc * other_loc))
    d_w, d_w_terms = quadratic["w"]
    d_log = first_slope + later * (step_slope + drift**2)
    d_log_terms = first_slope_terms + later * (step_slope_terms + square_terms)
    d_corr = -p.rho * step_slope + p.step**2 * ratio * drift
    d_corr_terms = abs(p.rho) * step_slope_terms + p.step**2 * ratio * drift_terms
    slope, slope_terms = q.rho * drift - q.step**2 * ratio, abs(q.rho) * drift_terms
    slope_terms += q.step**2 * ratio
    d_other = q.rho * step_slope + drift * slope
    d_other_terms = abs(q.rho) * step_slope_terms + drift_terms * slope_terms
    return {
        "value": _exact(
            (first + later * (step + drift**2)) / 2 + quadratic["value"][0],
            (first_terms + later * (step_terms + square_terms)) / 2 + quadratic["value"][1],
        ),
        "loc": _exact(d_w, d_w_terms),
        "scale": _exact(d_log / p.scale, d_log_terms / p.scale),
        "corr": _exact(later * d_corr * p.chain, later * d_corr_terms * p.chain),
        "other_loc": _exact(-d_w, d_w_terms),
        "other_scale": _exact(
            quadratic["scale"][0] - d_log / q.scale, quadratic["scale"][1] + d_log_terms / q.scale
        ),
        "other_corr": _exact(
            quadratic["corr"][0] + later * d_other * q.chain,
            quadratic["corr"][1] + later * d_other_terms * q.chain,
        ),
    }


def _vectorized_excess(log_ratio: np.ndarray, log_size: np.ndarray) -> list[np.ndarray]:
    columns = zip(*map(_excess, log_ratio, log_size), strict=True)
    return [np.array(column, dtype=object) for column in columns] or [log_ratio] * 4


def _log(x: np.ndarray) -> np.ndarray:
    return np.array([_ln(v) for v in x], dtype=object)


def reference_kl_ar1_diag(by, loc, scale, corr, other_loc, other_scale):
    """KL(AR1 ‖ independent normals)."""
    p, tau, later = Path(by, scale, corr), _decimals(other_scale), len(loc) - 1
    log_tau = _log(tau)
    excess, terms, slope, slope_terms = _vectorized_excess(
        2 * (p.scale.ln() - log_tau), p.log_size + abs(2 * log_tau)
    )
    w = (_decimals(loc) - _decimals(other_loc)) / tau
    w_terms = abs(w) * (1 + abs(log_tau))
    square_terms = abs(w) * w_terms
    logs = later * p.step.ln()
    return {
        "value": _exact(
            (excess + w**2).sum() / 2 - logs, (terms + square_terms).sum() / 2 + abs(logs)
        ),
        "loc": _exact(w / tau, w_terms / tau),
        "scale": _exact(slope.sum() / p.scale, slope_terms.sum() / p.scale),
        "corr": _exact(later * p.rho * p.chain, later * abs(p.rho) * p.chain),
        "other_loc": _exact(-w / tau, w_terms / tau),
        "other_scale": _exact(-(slope + w**2) / tau, (slope_terms + square_terms) / tau),
    }


def reference_kl_diag_ar1(by, loc, scale, corr, other_loc, other_scale):
    """KL(independent normals ‖ AR1); `other_` are the normals' parameters."""
    q, tau = Path(by, scale, corr), _decimals(other_scale)
    log_tau = _log(tau)
    v = 2 * (log_tau - q.scale.ln())
    later = np.arange(len(tau)) > 0
    v_steps = np.where(later, v - 2 * q.step.ln(), v)
    log_sizes = abs(2 * log_tau) + np.where(later, q.log_step_size, q.log_size)
    excess, terms, slope, slope_terms = _vectorized_excess(v_steps, log_sizes)
    drift = (q.rho * tau[:-1] / (q.scale * q.step)) ** 2
    drift_terms = drift * log_sizes[:-1]
    # Its derivative in u, of tanh² / sech² = sinh².
    d_drift = q.rho * (tau[:-1] / (q.scale * q.step)) ** 2
    d_drift_terms = abs(d_drift) * log_sizes[:-1]
    quadratic = q.quadratic(_decimals(other_loc) - _decimals(loc), np.any(loc * other_loc))
    d_w, d_w_terms = quadratic["w"]
    carried, carried_terms = slope.copy(), slope_terms.copy()
    carried[:-1] += drift
    carried_terms[:-1] += drift_terms
    d_corr = (q.rho * slope[1:] + d_drift).sum()
    d_corr_terms = (abs(q.rho) * slope_terms[1:] + d_drift_terms).sum()
    return {
        "value": _exact(
            (excess.sum() + drift.sum()) / 2 + quadratic["value"][0],
            (terms.sum() + drift_terms.sum()) / 2 + quadratic["value"][1],
        ),
        "loc": _exact(-d_w, d_w_terms),
        "scale": _exact(
            quadratic["scale"][0] - carried.sum() / q.scale,
            quadratic["scale"][1] + carried_terms.sum() / q.scale,
        ),
        "corr": _exact(
            quadratic["corr"][0] + d_corr * q.chain, quadratic["corr"][1] + d_corr_terms * q.chain
        ),
        "other_loc": _exact(d_w, d_w_terms),
        "other_scale": _exact(carried / tau, carried_terms / tau),
    }


def reference_marginal(by, corr, step):
    """The Fisher z of every `step`-th coordinate; terms: its size or one, whichever is larger."""
    p = Path(by, 1.0, corr)
    power = abs(p.rho) ** step if p.rho else decimal.Decimal(0)
    sign = p.sign**step
    value = ((1 + power) / (1 - power)).ln() / 2
    slope = step * p.chain * p.step**2 / (1 - power**2)
    slope *= abs(p.rho) ** (step - 1) * p.sign ** (step - 1) if step > 1 else 1
    return {
        "value": _exact(sign * value, max(value, decimal.Decimal(1))),
        # A rounding error of log |ρ| comes back multiplied by the step.
        "corr": _exact(slope, abs(slope) * (1 + step * abs(abs(p.rho).ln() if p.rho else 0))),
    }


class _Gaps(NamedTuple):
    """What the observed coordinates say about each other, and about what is missing."""

    mean: np.ndarray
    variance: np.ndarray
    squares: Any  # Mahalanobis, of the observed
    log_prob: Any


def _eliminate(p: Path, w: np.ndarray, observed: np.ndarray) -> _Gaps:
    """By elimination in the tridiagonal precision matrix, as for any Gaussian."""
    size, missing = len(w), ~observed
    inverse = 1 / p.step**2
    off = -p.rho * inverse
    diagonal = [inverse * (1 + p.rho**2 * (0 < t < size - 1)) for t in range(size)]
    if size == 1:
        diagonal = [decimal.Decimal(1)]
    # Forwards: pivots of the missing block, and the right-hand side of its mean.
    forward, rhs = list(diagonal), [decimal.Decimal(0)] * size
    for t in range(size):
        for s in (t - 1, t + 1):
            if 0 <= s < size and observed[s]:
                rhs[t] -= off * w[s]
        if t and missing[t - 1]:
            ratio = off / forward[t - 1]
            forward[t] -= off * ratio
            rhs[t] -= ratio * rhs[t - 1]
    # Backwards: the mean, and the pivots in the other order, which give the inverse's diagonal.
    backward, mean = list(diagonal), list(w)
    variance = np.full(size, decimal.Decimal(0))
    for t in reversed(range(size)):
        beyond = 0
        if t + 1 < size and missing[t + 1]:
            backward[t] -= off**2 / backward[t + 1]
            beyond = mean[t + 1]
        if missing[t]:
            mean[t] = (rhs[t] - off * beyond) / forward[t]
            variance[t] = p.scale**2 / (forward[t] + backward[t] - diagonal[t])
    # log p(observed) = log p(all) - log p(missing | observed), at the conditional mean.
    mean = np.array(mean)
    e, *_ = p.whiten(mean)
    log_det = sum(_ln(forward[t]) - 2 * _ln(p.scale) for t in np.flatnonzero(missing))
    squares = (e**2).sum()
    log_prob = -squares / 2 - size * p.scale.ln() - (size - 1) * p.step.ln()
    log_prob -= (observed.sum() * _LOG_TWO_PI + log_det) / 2
    return _Gaps(mean, variance, squares, log_prob if observed.any() else 0)


# A finite difference of numbers near one says nothing below this.
_SMALLEST_SLOPE = decimal.Decimal("1e-30")


def _central_difference(function: Callable[[Any], Any], x: Any) -> Any:
    # Of what is left of 120 digits after 1 - ρ² has taken as many as 52.
    step = decimal.Decimal("1e-24") * (1 - abs(x) if abs(x) < 1 else 1)
    return (function(x + step) - function(x - step)) / (2 * step)


def _conditional_inputs(by, loc, scale, corr, x, observed):
    p, loc = Path(by, scale, corr), _decimals(loc)
    w = np.where(observed, _decimals(x) - loc, decimal.Decimal(0))
    return p, loc, w, np.asarray(observed, bool)


def reference_conditional_mean(by, loc, scale, corr, x, observed, weights=None):
    """The conditional mean. Terms: `loc` and the nearest observed on either side."""
    p, loc, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    g = _weights(w, weights)
    neighbours = np.full(len(w), decimal.Decimal(0))
    for order in (range(len(w)), reversed(range(len(w)))):
        last = decimal.Decimal(0)
        for t in order:
            last = abs(w[t]) + abs(loc[t]) if observed[t] else last
            neighbours[t] += last

    def weighted(given):
        return (g * _eliminate(Path(by, scale, given), w, observed).mean).sum()

    return {
        "value": _exact(loc + _eliminate(p, w, observed).mean, abs(loc) + neighbours),
        "corr": _exact(
            _central_difference(weighted, _decimal(corr)),
            p.chain * (abs(g) * neighbours)[~observed].sum() + _SMALLEST_SLOPE,
        ),
    }


def reference_conditional_variance(by, loc, scale, corr, x, observed, weights=None):
    """The conditional variance. Terms: itself."""
    p, _, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    g, variance = _weights(w, weights), _eliminate(p, w, observed).variance

    def weighted(given):
        return (g * _eliminate(Path(by, scale, given), w, observed).variance).sum()

    total = (abs(g) * variance).sum()
    return {
        "value": _exact(variance, variance),
        "scale": _exact(2 * (g * variance).sum() / p.scale, 2 * total / p.scale),
        "corr": _exact(
            _central_difference(weighted, _decimal(corr)), p.chain * total + _SMALLEST_SLOPE
        ),
    }


def reference_observed_log_prob(by, loc, scale, corr, x, observed):
    """The log-density of what is observed. Terms: as of `log_prob`, from one to the next."""
    p, loc, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    where, rounded = np.flatnonzero(observed), np.any(loc != 0)
    logs = len(where) * (abs(p.scale.ln()) + _LOG_TWO_PI / 2)
    squares = sum(((w[t] / p.scale) ** 2 for t in where[:1]), decimal.Decimal(0))
    slopes = decimal.Decimal(0)
    for t, s in zip(where[1:], where, strict=False):
        gap = int(t - s)
        power = p.rho**gap if p.rho else decimal.Decimal(0)
        d_power = gap * (p.rho ** (gap - 1) if gap > 1 else 1) * p.step**2
        rest = 1 - power**2
        difference = abs(w[t] - p.sign**gap * w[s])
        if rounded:
            difference += abs(w[t]) + abs(w[s])
        step = p.scale * rest.sqrt()
        e = (difference + (1 - abs(power)) * abs(w[s])) / step
        slope = abs(d_power) * (abs(w[s]) / step + abs(power) / rest * e)
        squares += e**2
        logs += abs(_ln(rest)) / 2
        slopes += e * slope + abs(d_power * power) / rest

    def log_prob(given):
        return _eliminate(Path(by, scale, given), w, observed).log_prob

    at = _eliminate(p, w, observed)
    return {
        "value": _exact(at.log_prob, squares / 2 + logs),
        "scale": _exact((at.squares - len(where)) / p.scale, (squares + len(where)) / p.scale),
        "corr": _exact(
            _central_difference(log_prob, _decimal(corr)), p.chain * slopes + _SMALLEST_SLOPE
        ),
    }


# --- The operations of the package -----------------------------------------------------------


def operator(by, scale, corr, size):
    """The operator of the package."""
    return tfp_ar1.LinearOperatorAR1Cholesky(size, marginal_scale=scale, **{by: corr})


def distribution(by, loc, scale, corr):
    """The distribution of the package."""
    return tfp_ar1.MultivariateNormalAR1(loc, scale, **{by: corr})


def _entropy(by, scale, corr, size):
    return distribution(by, tf.zeros(size, scale.dtype), scale, corr).entropy()


def _marginal(by, corr, step):
    whole = distribution(by, tf.zeros(1 + step, corr.dtype), tf.ones([], corr.dtype), corr)
    return whole.marginal(step=step).scale.fisher_z


def _conditional(by, loc, scale, corr, x, observed):
    return distribution(by, loc, scale, corr).conditional(x, observed)


class Operation(NamedTuple):
    """What the package computes, its reference, and how the table calls it."""

    compute: Callable[..., Any]
    reference: Callable[..., dict[str, Exact]]
    title: str


OPERATIONS = {
    "matvec": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).matvec(x),
        reference_matvec,
        "sample from given noise (`scale.matvec`)",
    ),
    "matvec_adjoint": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).matvec(x, adjoint=True),
        reference_matvec_adjoint,
        "`scale.matvec(adjoint=True)`",
    ),
    "solvevec": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).solvevec(x),
        reference_solvevec,
        "whitening (`scale.solvevec`)",
    ),
    "solvevec_adjoint": Operation(
        lambda by, scale, corr, x: operator(by, scale, corr, len(x)).solvevec(x, adjoint=True),
        reference_solvevec_adjoint,
        "`scale.solvevec(adjoint=True)`",
    ),
    "log_prob": Operation(
        lambda by, loc, scale, corr, x: distribution(by, loc, scale, corr).log_prob(x),
        reference_log_prob,
        "`log_prob`",
    ),
    "entropy": Operation(_entropy, reference_entropy, "`entropy`"),
    "kl_ar1_ar1": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale, other_corr: tfd.kl_divergence(
            distribution(by, loc, scale, corr), distribution(by, other_loc, other_scale, other_corr)
        ),
        reference_kl_ar1_ar1,
        "KL(AR(1) ‖ AR(1))",
    ),
    "kl_ar1_diag": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale: tfd.kl_divergence(
            distribution(by, loc, scale, corr), tfd.MultivariateNormalDiag(other_loc, other_scale)
        ),
        reference_kl_ar1_diag,
        "KL(AR(1) ‖ diagonal)",
    ),
    "kl_diag_ar1": Operation(
        lambda by, loc, scale, corr, other_loc, other_scale: tfd.kl_divergence(
            tfd.MultivariateNormalDiag(other_loc, other_scale), distribution(by, loc, scale, corr)
        ),
        reference_kl_diag_ar1,
        "KL(diagonal ‖ AR(1))",
    ),
    "marginal": Operation(_marginal, reference_marginal, "`marginal(step=k)`: its Fisher z"),
    "conditional_mean": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).mean(),
        reference_conditional_mean,
        "`conditional`: mean",
    ),
    "conditional_variance": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).variance(),
        reference_conditional_variance,
        "`conditional`: variance",
    ),
    "observed_log_prob": Operation(
        lambda *args, **inputs: _conditional(*args, **inputs).observed_log_prob(),
        reference_observed_log_prob,
        "`conditional`: `observed_log_prob`",
    ),
}
# What is not differentiated, nor converted to the dtype.
_STATIC = {"size", "step", "observed", "weights"}


def reference(name: str, by: str, inputs: dict[str, Any]) -> dict[str, Exact]:
    """The value and the derivatives of an operation, exactly, at these very inputs."""
    with decimal.localcontext(CONTEXT):
        results = OPERATIONS[name].reference(by, **inputs)
    # Without terms there is nothing, not even the last of 120 digits of a finite difference.
    return {k: Exact(np.where(e.terms == 0, 0.0, e.value), e.terms) for k, e in results.items()}


def compute(
    name: str, by: str, inputs: dict[str, Any], dtype: str, gradients: bool = True
) -> dict[str, np.ndarray]:
    """The same from the package, in `dtype`. Vectors are differentiated times `weights`."""
    inputs = dict(inputs)
    weights = inputs.pop("weights", None)
    tensors = {k: tf.constant(v, dtype) for k, v in inputs.items() if k not in _STATIC}
    static = {k: v for k, v in inputs.items() if k in _STATIC}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = OPERATIONS[name].compute(by, **tensors, **static)
    results = {"value": value}
    if gradients:
        weights = None if weights is None else tf.constant(weights, dtype)
        results |= tape.gradient(
            value, tensors, output_gradients=weights, unconnected_gradients="zero"
        )
    return {k: v.numpy() for k, v in results.items()}


class Error(NamedTuple):
    """The largest error among the entries of one result."""

    relative: float  # to the largest entry
    units: float  # eps of the entry's terms


def error(actual: np.ndarray, exact: Exact) -> Error:
    """The error of `actual` where its dtype has numbers for the terms.

    Numbers below the smallest normal one are as good as zero, because TensorFlow flushes them.
    """
    info = np.finfo(actual.dtype)
    fits = exact.terms < 0.5 * float(info.max)
    with np.errstate(all="ignore"):
        difference = np.where(fits, np.abs(actual.astype(np.float64) - exact.value), 0.0)
        difference = np.maximum(difference - 4 * float(info.tiny), 0.0)
        units = np.where(difference == 0, 0.0, difference / (exact.terms * float(info.eps)))
        largest = np.max(np.where(fits, np.abs(exact.value), 0.0), initial=0.0)
        relative = np.max(difference, initial=0.0)
        relative = relative / largest if largest else 0.0
    units = np.where(np.isnan(units), np.inf, units)
    return Error(float(relative), float(np.max(units, initial=0.0)))


# --- The grid --------------------------------------------------------------------------------

CORRELATIONS = [
    *(("correlation", rho) for rho in (0.0, 0.5, -0.9, 0.999, 1 - 1e-7, -(1 - 1e-7))),
    *(("fisher_z", u) for u in (1.0, -5.0, 10.0, 20.0)),
]
SCALES = (1e-15, 1e-3, 1.0, 1e3, 1e15)
SIZES = (2, 100, 2000)
LARGEST = 100_000  # at scale 1 only, for time
SEED = 0


def cases() -> list[tuple[str, float, float, int]]:
    """The grid, as `(by, corr, scale, size)`."""
    sizes = [(scale, size) for scale in SCALES for size in SIZES] + [(1.0, LARGEST)]
    return [(by, corr, scale, size) for by, corr in CORRELATIONS for scale, size in sizes]


def neighbour(by: str, corr: float) -> float:
    """Another correlation, on the same side: half as far again from the end, or less by ½."""
    if by == "fisher_z":
        return corr - 0.5
    return float(np.copysign(1 - 1.5 * (1 - abs(corr)), corr))


def inputs_for(
    name: str, by: str, corr: float, scale: float, size: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Inputs of an operation; numbers that float32 has, so that both dtypes get the same."""
    corr, scale = float(np.float32(corr)), float(np.float32(scale))
    noise = rng.normal(size=size)
    path = operator(by, np.float64(scale), np.float64(corr), size)
    sample = path.matvec(noise).numpy()
    loc = rng.normal(size=size) * scale
    other_scale = scale * rng.choice(rng.uniform(0.5, 2.0, 100), size)
    zeros = np.zeros(size)
    kl = {"loc": loc, "scale": scale, "corr": corr, "other_loc": zeros}
    conditional = {
        "loc": zeros,
        "scale": scale,
        "corr": corr,
        "x": sample,
        "observed": rng.random(size) < 0.5,
    }
    inputs = {
        "matvec": {"scale": scale, "corr": corr, "x": noise},
        "matvec_adjoint": {"scale": scale, "corr": corr, "x": noise},
        "solvevec": {"scale": scale, "corr": corr, "x": sample},
        "solvevec_adjoint": {"scale": scale, "corr": corr, "x": sample},
        "log_prob": {"loc": zeros, "scale": scale, "corr": corr, "x": sample},
        "entropy": {"scale": scale, "corr": corr, "size": size},
        "kl_ar1_ar1": {**kl, "other_scale": 1.3 * scale, "other_corr": neighbour(by, corr)},
        "kl_ar1_diag": {**kl, "other_scale": other_scale},
        "kl_diag_ar1": {**kl, "loc": zeros, "other_loc": loc, "other_scale": other_scale},
        "marginal": {"corr": corr, "step": size},
        "conditional_mean": conditional,
        "conditional_variance": conditional,
        "observed_log_prob": conditional,
    }[name]
    return {k: v if k in _STATIC else np.float64(np.float32(v)) for k, v in inputs.items()}


def measure(progress: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """One entry for each result of each operation, over the whole grid."""
    entries = []
    for name, operation in OPERATIONS.items():
        progress(name)
        errors: dict[tuple[str, str], list[Error]] = {}
        for number, (by, corr, scale, size) in enumerate(cases()):
            rng = np.random.default_rng([SEED, number])
            inputs = inputs_for(name, by, corr, scale, size, rng)
            exact = reference(name, by, inputs)
            for dtype in DTYPES:
                actual = compute(name, by, inputs, dtype)
                for result, value in actual.items():
                    if result not in exact:
                        continue
                    what = "value" if result == "value" else "gradients"
                    errors.setdefault((what, dtype), []).append(error(value, exact[result]))
        for what in dict.fromkeys(what for what, _ in errors):
            title = operation.title if what == "value" else f"{operation.title}, gradients"
            entry = {"operation": name, "result": what, "title": title}
            for dtype in DTYPES:
                found = errors[what, dtype]
                relative, units = ([e[i] for e in found] for i in range(2))
                entry[dtype] = {
                    "comparisons": len(found),
                    "median_relative_error": float(np.median(relative)),
                    "max_relative_error": max(relative),
                    "max_error_in_eps_of_terms": max(units),
                }
            entries.append(entry)
    return entries


def table(results: dict[str, Any]) -> str:
    """The Markdown table of what `measure` found."""
    lines = [
        "| operation | float32: median | maximum | in eps of the terms "
        "| float64: median | maximum | in eps of the terms |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in results["entries"]:
        columns = [entry["title"]]
        for dtype in DTYPES:
            e = entry[dtype]
            columns += [
                f"{e['median_relative_error']:.1e}",
                f"{e['max_relative_error']:.1e}",
                f"{e['max_error_in_eps_of_terms']:.3g}",
            ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def page_with(page: str, results: dict[str, Any]) -> str:
    """The page with the table between the markers replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is there in full, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    """Measures, and writes the JSON and, for the default file, the table in the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=RESULTS,
        help="the JSON file; with the default the table in docs/accuracy.md is rewritten too",
    )
    arguments = parser.parse_args()
    if arguments.out != RESULTS and arguments.out.exists():
        parser.error(f"{arguments.out} exists already; choose another --out or remove it first.")
    results = {
        "command": "python benchmarks/measure_accuracy.py",
        "versions": {
            "python": platform.python_version(),
            "tfp_ar1": tfp_ar1.__version__,
            "tensorflow": tf.__version__,
            "tensorflow-probability": tfp.__version__,
            "numpy": np.__version__,
        },
        "machine": platform.machine(),
        "seed": SEED,
        "grid": {
            "correlations": [{by: corr} for by, corr in CORRELATIONS],
            "marginal_scales": SCALES,
            "sizes": SIZES,
            "size_at_marginal_scale_1_only": LARGEST,
        },
        "reference": f"decimals of {CONTEXT.prec} digits",
        "entries": measure(functools.partial(print, file=sys.stderr)),
    }
    write_atomically(arguments.out, json.dumps(results, indent=1) + "\n")
    if arguments.out == RESULTS:
        write_atomically(PAGE, page_with(PAGE.read_text(encoding="utf-8"), results))
    print(table(results))


if __name__ == "__main__":
    main()
