"""Quantiles of the gamma distribution, without a package: what the interval of a skewed mean is made of."""

from __future__ import annotations

import math

_LARGE_SHAPE = 1e5  # from here on Wilson and Hilferty's cube is right to seven digits, and the series gets long
_SMALLEST_SHAPE = 0.01


def gamma_quantile(p: float, shape: float) -> float:
    """Where the distribution function of Gamma(shape, 1) is `p`; 2 * this is chi-square's with 2 * shape degrees.

    Begins at Wilson and Hilferty's (1931) approximation and takes Newton's steps, kept between bounds.
    """
    if shape < _SMALLEST_SHAPE:
        return 0.0 if p < 0.5 else gamma_quantile(p, _SMALLEST_SHAPE)
    cube = 1 - 1 / (9 * shape) + _normal_quantile(p) / (3 * math.sqrt(shape))
    x = shape * cube**3
    if shape > _LARGE_SHAPE:
        return x
    if cube <= 0.2:
        x = math.exp((math.log(p) + math.lgamma(shape + 1)) / shape)  # near 0 the function is x^shape / Γ(shape + 1)
    low, high = 0.0, math.inf
    for _ in range(100):
        error = _gamma_cdf(x, shape) - p
        low, high = (x, high) if error < 0 else (low, x)
        slope = math.exp((shape - 1) * math.log(x) - x - math.lgamma(shape))
        step = x - error / slope if slope > 0 else low
        if not low < step < high:
            step = (low + high) / 2 if high < math.inf else 2 * x
        if abs(step - x) <= 1e-10 * x:
            return step
        x = step
    return x


def _gamma_cdf(x: float, shape: float) -> float:
    """The regularized incomplete gamma function: its series, or its continued fraction (Lentz) beyond the mean."""
    if x <= 0:
        return 0.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        k = shape
        while term > 1e-15 * total:
            k += 1
            term *= x / k
            total += term
        return front * total
    b = x + 1 - shape
    c, d = 1e300, 1 / b
    fraction = d
    for k in range(1, 100_000):
        a = -k * (k - shape)
        b += 2
        d = 1 / ((a * d + b) or 1e-300)
        c = (b + a / c) or 1e-300
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 - front * fraction


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
