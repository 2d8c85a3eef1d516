"""What follows from ρ keeps its relative accuracy near ±1, against decimals of 60 digits."""

import decimal

import numpy as np
import pytest

from tfp_ar1.correlation import LagOneCorrelation

FISHER_Z = (1e-15, 1e-8, 1e-3, 0.1, 0.499, 0.501, 1.0, 3.0, 5.0, 8.0, 9.0, 15.0, 20.0, 40.0)
CORRELATIONS = (1e-12, 1e-3, 0.3, 0.5, 0.7, 0.9, 0.999, 1 - 2**-20)


def references(name, x):
    """The properties of a correlation, by their definitions."""
    with decimal.localcontext(decimal.Context(prec=60)):
        x = decimal.Decimal(float(x))
        if name == "fisher_z":
            positive, negative = x.exp(), (-x).exp()
            rho = (positive - negative) / (positive + negative)
        else:
            rho = x
        sign = 1 if x >= 0 else -1
        variance = 1 - rho * rho
        return {
            "value": rho,
            "sign": sign,
            "signed_one_minus_abs": sign - rho,
            "log1m_rho2": variance.ln(),
            "unit_innovation_scale": variance.sqrt(),
            "inverse_unit_innovation_scale": 1 / variance.sqrt(),
            "signed_exp_neg_abs_z": (sign - rho) / variance.sqrt(),
            "log_abs": abs(rho).ln(),
        }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "sizes"), [("fisher_z", FISHER_Z), ("correlation", CORRELATIONS)])
def test_relative_accuracy(name, sizes, dtype):
    x = np.array([sign * size for size in sizes for sign in (1, -1)], dtype)
    if name == "correlation":
        ends = np.nextafter(np.array([1, -1], dtype), np.array(0, dtype))
        x = np.concatenate([x, ends])
    rho = LagOneCorrelation(**{name: x})
    expected = [references(name, value) for value in x]
    # An exponent of size u has an error of u times its own, which is half a unit in the last place.
    tolerance = (4 + (np.abs(x) if name == "fisher_z" else 0)) * np.finfo(dtype).eps
    for key in expected[0]:
        actual = [decimal.Decimal(float(value)) for value in np.asarray(getattr(rho, key))]
        right = [e[key] for e in expected]
        errors = [abs(float((a - e) / e)) for a, e in zip(actual, right, strict=True)]
        np.testing.assert_array_less(errors, tolerance, err_msg=key)
