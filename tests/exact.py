"""Decimal references for the tests and `benchmarks/measure_accuracy.py`, without TensorFlow.

There are two. `Exact` is one Gaussian Markov chain by its dense covariance, with 200 digits: slow,
and without care for rounding, as there are enough digits. The functions `reference_*`, for AR(1),
run along the path in O(d) with 120 digits. Besides each result they give its *terms*, the sizes of
its summands, by which the rounding errors of an implementation are measured. An error in either
shows as a disagreement with the package, which the dense matrices of `oracles.py` confirm.

Both take floating-point numbers as they are; inputs meant to be float32 must be rounded before.
"""

from __future__ import annotations

import dataclasses
import decimal
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_WIDEST = {"Emin": -(10**6), "Emax": 10**6}
CONTEXT = decimal.Context(prec=120, **_WIDEST)
_CONTEXT_OF_DENSE = decimal.Context(prec=200, **_WIDEST)
# 201 digits of log 2π.
_LOG_TWO_PI = decimal.Decimal(
    "1.837877066409345483560659472811235279722794947275566825634303080965531391854520"
    "79538948659727190839524401129324926867489273372576368158714431175183044536278720"
    "7121485094717338092791811982761611260326469"
)


def _decimal(x: Any) -> decimal.Decimal:
    return x if isinstance(x, decimal.Decimal) else decimal.Decimal(float(x))


# --- One chain, by its dense covariance ------------------------------------------------------


def _exactly(method: Callable) -> Callable:
    """Runs a method with 200 digits."""

    @functools.wraps(method)
    def run(*args: Any) -> decimal.Decimal:
        with decimal.localcontext(_CONTEXT_OF_DENSE):
            return method(*args)

    return run


@dataclasses.dataclass(frozen=True)
class Exact:
    """A Gaussian Markov chain given by its mean, its scale and `atanh ρ`.

    Scale and `fisher_z` are single numbers for all coordinates and steps, or sequences with a
    number for each. Results are decimals.
    """

    mean: tuple
    scale: Any
    fisher_z: Any

    @classmethod
    def ou(cls, mean: tuple, scale: Any, length_scale: Any, times: Any) -> Exact:
        """The Ornstein–Uhlenbeck process, with correlations `exp(-Δτ / ℓ)`."""
        with decimal.localcontext(_CONTEXT_OF_DENSE):
            times = [_decimal(t) for t in times]
            fisher_z = []
            for before, after in itertools.pairwise(times):
                rho = ((before - after) / _decimal(length_scale)).exp()
                fisher_z.append(((1 + rho) / (1 - rho)).ln() / 2)
        return cls(mean, scale, tuple(fisher_z))

    def _entries(self, field: str, count: int) -> list[decimal.Decimal]:
        x = getattr(self, field)
        return [_decimal(e) for e in x] if np.ndim(x) else [_decimal(x)] * count

    def _factor(self) -> list[list[decimal.Decimal]]:
        """The Cholesky factor of the covariance, by the Cholesky–Banachiewicz algorithm."""
        size = len(self.mean)
        scale, steps = self._entries("scale", size), []
        for u in self._entries("fisher_z", size - 1):
            e = (2 * u).exp()
            steps.append((e - 1) / (e + 1))
        low = [[decimal.Decimal(0)] * size for _ in range(size)]
        for i in range(size):
            for j in range(i + 1):
                covariance = scale[i] * scale[j]
                for rho in steps[j:i]:
                    covariance *= rho
                rest = covariance - sum(low[i][k] * low[j][k] for k in range(j))
                low[i][j] = rest.sqrt() if i == j else rest / low[j][j]
        return low

    @staticmethod
    def _squared_norm_of_solution(low: list, column: list) -> decimal.Decimal:
        solution: list = []
        for row, entry in zip(low, column, strict=True):
            rest = entry - sum(a * b for a, b in zip(row, solution, strict=False))
            solution.append(rest / row[len(solution)])
        return sum(e * e for e in solution)

    def _centred(self, value: Any) -> list[decimal.Decimal]:
        return [_decimal(x) - _decimal(m) for x, m in zip(value, self.mean, strict=True)]

    @staticmethod
    def _log_det(low: list) -> decimal.Decimal:
        return 2 * sum(low[i][i].ln() for i in range(len(low)))

    @_exactly
    def log_prob(self, value: Any) -> decimal.Decimal:
        low = self._factor()
        squares = self._squared_norm_of_solution(low, self._centred(value))
        return -(len(low) * _LOG_TWO_PI + self._log_det(low) + squares) / 2

    @_exactly
    def entropy(self) -> decimal.Decimal:
        low = self._factor()
        return (len(low) * (1 + _LOG_TWO_PI) + self._log_det(low)) / 2

    @_exactly
    def kl(self, other: Exact) -> decimal.Decimal:
        low, other_low = self._factor(), other._factor()
        columns = [list(column) for column in zip(*low, strict=True)]
        columns.append(self._centred(other.mean))
        trace_and_squares = sum(self._squared_norm_of_solution(other_low, c) for c in columns)
        log_dets = self._log_det(other_low) - self._log_det(low)
        return (trace_and_squares - len(low) + log_dets) / 2

    @_exactly
    def derivative(self, function: Callable, field: str, index: int | None = None) -> Any:
        """The derivative of `function(self)` by a field, or by one entry of a sequence field.

        A central difference with a step of 1e-60; with 200 digits, exact for every purpose.
        """
        step = decimal.Decimal("1e-60")

        def moved(h: decimal.Decimal) -> Exact:
            x = getattr(self, field)
            if index is None:
                return dataclasses.replace(self, **{field: _decimal(x) + h})
            entries = [_decimal(e) + (h if i == index else 0) for i, e in enumerate(x)]
            return dataclasses.replace(self, **{field: tuple(entries)})

        return (function(moved(step)) - function(moved(-step))) / (2 * step)

    def gradient(self, function: Callable, field: str) -> list:
        """The derivatives by all entries of a sequence field."""
        return [self.derivative(function, field, i) for i in range(len(getattr(self, field)))]


# --- References of AR(1), coordinate by coordinate, with the terms of each result --------------


class Reference(NamedTuple):
    """A result and the size of its terms, as float64 arrays of the same shape."""

    value: np.ndarray
    terms: np.ndarray


def _decimals(x: Any) -> np.ndarray:
    flat = [_decimal(v) for v in np.ravel(x)]
    return np.array(flat, dtype=object).reshape(np.shape(x))


def _exact(value: Any, terms: Any) -> Reference:
    return Reference(np.asarray(value, np.float64), np.asarray(terms, np.float64))


def _run(coefficient: Any, x: np.ndarray) -> np.ndarray:
    """`y_t = coefficient y_{t-1} + x_t`."""
    y = x.copy()
    for t in range(1, len(y)):
        y[t] = coefficient * y[t - 1] + x[t]
    return y


class Path:
    """One AR(1) normal in decimals; use it within `CONTEXT`.

    Derivatives are with respect to u = atanh ρ; times `chain`, with respect to the given parameter.
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
        self.log_size = 1 + abs(2 * self.scale.ln())  # Size of log σ² and its rounding error.
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
        not cancel; with `rounded`, also those of rounding errors in w itself.
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
        # The first row is the first column of L⁻¹, where g is not divided by the step.
        value[0] = g[0] - self.rho * later[0] / self.step
        terms[0] = abs(g[0]) + abs(self.rho * later[0]) / self.step
        slope[0] = -later[0] / self.step
        slope_terms[0] = abs(slope[0])
        return tuple(a / self.scale for a in (value, slope, terms, slope_terms))

    def rounded_adjoint(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """L⁻ᵀ g, with the terms of a sum of individually rounded products."""
        value, *_ = self.whiten_adjoint(g)
        terms = abs(g) / self.step
        terms[:1] = abs(g[:1])
        terms[:-1] += abs(g[1:]) / self.step
        return value, terms / self.scale

    def quadratic(self, w: np.ndarray, rounded: bool) -> dict[str, Reference]:
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


# Cached: logarithms to 120 digits are slow, and large cases repeat a few arguments.
_ln = functools.lru_cache(maxsize=1000)(decimal.Decimal.ln)


@functools.lru_cache(maxsize=1000)
def _excess(log_ratio: Any, log_size: Any) -> tuple[Any, ...]:
    """`exp(v) - 1 - v` and its derivative, with their terms; `log_size` is v's rounding error."""
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
    """L x, a draw from given noise x."""
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
    """Lᵀ x; its derivatives are those of L with x and the weights exchanged."""
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
    # A gradient sums products that are rounded individually.
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
    # The signs are exact, and contribute no error where they are equal.
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
    # The derivative by u of tanh² / sech² = sinh².
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
    """The Fisher z of every `step`-th coordinate. Terms: the larger of its size and 1."""
    p = Path(by, 1.0, corr)
    power = abs(p.rho) ** step if p.rho else decimal.Decimal(0)
    sign = p.sign**step
    value = ((1 + power) / (1 - power)).ln() / 2
    slope = step * p.chain * p.step**2 / (1 - power**2)
    slope *= abs(p.rho) ** (step - 1) * p.sign ** (step - 1) if step > 1 else 1
    return {
        "value": _exact(sign * value, max(value, decimal.Decimal(1))),
        # A rounding error of log |ρ| is multiplied by the step.
        "corr": _exact(slope, abs(slope) * (1 + step * abs(abs(p.rho).ln() if p.rho else 0))),
    }


def _given_observed(p: Path, w: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance from the nearest observed coordinates on either side."""
    where, mean, variance = np.flatnonzero(observed), w.copy(), np.full_like(w, decimal.Decimal(0))
    for t in np.flatnonzero(~observed):
        before, after = where[where < t][-1:], where[where > t][:1]
        # The correlation with either neighbour; 0 if there is none.
        a, b = (
            sum((p.rho ** int(abs(t - s)) for s in side), 0 * p.rho) for side in (before, after)
        )
        rest = 1 - (a * b) ** 2
        mean[t] = (a * (1 - b**2) * sum(w[before]) + b * (1 - a**2) * sum(w[after])) / rest
        variance[t] = p.scale**2 * (1 - a**2) * (1 - b**2) / rest
    return mean, variance


def _log_prob_of(p: Path, w: np.ndarray, where: np.ndarray) -> tuple[Any, Any]:
    """Log-density of the coordinates `where`, each given the previous one; and their squares."""
    first = (w[where[:1]] / p.scale) ** 2
    powers = np.array([p.rho ** int(gap) for gap in np.diff(where)], object)
    rest = 1 - powers**2
    squares = sum(first) + sum((w[where[1:]] - powers * w[where[:-1]]) ** 2 / rest) / p.scale**2
    logs = len(where) * (p.scale.ln() + _LOG_TWO_PI / 2) + sum(_log(rest), 0 * p.rho) / 2
    return -decimal.Decimal(squares) / 2 - logs, squares


# A finite difference of numbers near one is meaningless below this.
_SMALLEST_SLOPE = decimal.Decimal("1e-30")


def _central_difference(function: Callable[[Any], Any], x: Any) -> Any:
    # For the digits that remain of 120 after 1 - ρ² has cost up to 52.
    step = decimal.Decimal("1e-24") * (1 - abs(x) if abs(x) < 1 else 1)
    return (function(x + step) - function(x - step)) / (2 * step)


def _conditional_inputs(by, loc, scale, corr, x, observed):
    p, loc = Path(by, scale, corr), _decimals(loc)
    w = np.where(observed, _decimals(x) - loc, decimal.Decimal(0))
    return p, loc, w, np.asarray(observed, bool)


def reference_conditional_mean(by, loc, scale, corr, x, observed, weights=None):
    """The conditional mean. Terms: `loc` and the nearest observations on either side."""
    p, loc, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    g, sizes = _weights(w, weights), abs(w) + abs(loc)
    where, neighbours = np.flatnonzero(observed), np.full(len(w), decimal.Decimal(0))
    for t in range(len(w)):
        for side in (where[where <= t][-1:], where[where >= t][:1]):
            neighbours[t] += sum(sizes[side])

    def weighted(given):
        return (g * _given_observed(Path(by, scale, given), w, observed)[0]).sum()

    return {
        "value": _exact(loc + _given_observed(p, w, observed)[0], abs(loc) + neighbours),
        "corr": _exact(
            _central_difference(weighted, _decimal(corr)),
            p.chain * (abs(g) * neighbours)[~observed].sum() + _SMALLEST_SLOPE,
        ),
    }


def reference_conditional_variance(by, loc, scale, corr, x, observed, weights=None):
    """The conditional variance. Terms: itself."""
    p, _, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    g, variance = _weights(w, weights), _given_observed(p, w, observed)[1]

    def weighted(given):
        return (g * _given_observed(Path(by, scale, given), w, observed)[1]).sum()

    total = (abs(g) * variance).sum()
    return {
        "value": _exact(variance, variance),
        "scale": _exact(2 * (g * variance).sum() / p.scale, 2 * total / p.scale),
        "corr": _exact(
            _central_difference(weighted, _decimal(corr)), p.chain * total + _SMALLEST_SLOPE
        ),
    }


def reference_observed_log_prob(by, loc, scale, corr, x, observed):
    """The log-density of the observations. Terms: as for `log_prob`, from one to the next."""
    p, loc, w, observed = _conditional_inputs(by, loc, scale, corr, x, observed)
    where, rounded = np.flatnonzero(observed), np.any(loc != 0)
    logs = len(where) * (abs(p.scale.ln()) + _LOG_TWO_PI / 2)
    squares = sum(((w[t] / p.scale) ** 2 for t in where[:1]), decimal.Decimal(0))
    slopes = decimal.Decimal(0)
    for t, s in zip(where[1:], where, strict=False):
        gap = int(t - s)
        power = p.rho**gap
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
        return _log_prob_of(Path(by, scale, given), w, where)[0]

    value, exact_squares = _log_prob_of(p, w, where)
    return {
        "value": _exact(value, squares / 2 + logs),
        "scale": _exact((exact_squares - len(where)) / p.scale, (squares + len(where)) / p.scale),
        "corr": _exact(
            _central_difference(log_prob, _decimal(corr)), p.chain * slopes + _SMALLEST_SLOPE
        ),
    }


# --- A chain observed with noise ----------------------------------------------------------------


class Noisy(NamedTuple):
    """The posterior of a chain given noisy observations, by the Kalman filter and smoother."""

    log_prob: decimal.Decimal
    mean: list
    variance: list
    fisher_z: list  # Of neighbours, given the observations.
    kl: decimal.Decimal  # KL(posterior ‖ chain).


@_exactly
def noisy(chain: Exact, value: Any, noise: Any, observed: Any) -> Noisy:
    """Filters and smooths `value` where `observed`, with noise of standard deviations `noise`."""
    size = len(chain.mean)
    loc, scale = chain._entries("mean", size), chain._entries("scale", size)
    ratios = [(2 * u).exp() for u in chain._entries("fisher_z", size - 1)]
    # x_t - loc_t = β_t (x_(t-1) - loc_(t-1)) + a normal of variance q_t
    beta = [decimal.Decimal(0)]
    beta += [(e - 1) / (e + 1) * scale[t + 1] / scale[t] for t, e in enumerate(ratios)]
    q = [scale[0] ** 2]
    q += [4 * e / (e + 1) ** 2 * scale[t + 1] ** 2 for t, e in enumerate(ratios)]
    log_prob, mean, variance, predicted = decimal.Decimal(0), [], [], []
    for t in range(size):
        m, v = (beta[t] * mean[-1], beta[t] ** 2 * variance[-1]) if t else (decimal.Decimal(0),) * 2
        v += q[t]
        predicted.append((m, v))
        if observed[t]:
            error, r = _decimal(value[t]) - loc[t] - m, _decimal(noise[t]) ** 2
            log_prob -= (error**2 / (v + r) + (v + r).ln() + _LOG_TWO_PI) / 2
            m, v = m + v / (v + r) * error, v * r / (v + r)
        mean.append(m)
        variance.append(v)
    fisher_z = []
    for t in range(size - 2, -1, -1):
        gain = beta[t + 1] * variance[t] / predicted[t + 1][1]
        mean[t] += gain * (mean[t + 1] - predicted[t + 1][0])
        variance[t] += gain**2 * (variance[t + 1] - predicted[t + 1][1])
        rho = gain * (variance[t + 1] / variance[t]).sqrt()
        fisher_z.append(((1 + rho) / (1 - rho)).ln() / 2)
    fisher_z.reverse()
    kl = decimal.Decimal(0)
    for t in range(size):
        if t:
            rho = ((2 * fisher_z[t - 1]).exp() - 1) / ((2 * fisher_z[t - 1]).exp() + 1)
            slope = rho * (variance[t] / variance[t - 1]).sqrt() - beta[t]
            shift = slope**2 * variance[t - 1] + (mean[t] - beta[t] * mean[t - 1]) ** 2
            ratio = variance[t] * (1 - rho**2) / q[t]
        else:
            shift, ratio = mean[0] ** 2, variance[0] / q[0]
        kl += (ratio - 1 - ratio.ln() + shift / q[t]) / 2
    return Noisy(log_prob, [m + x for m, x in zip(mean, loc, strict=True)], variance, fisher_z, kl)
