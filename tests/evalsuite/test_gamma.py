from __future__ import annotations

import math

import pytest

from evalsuite.gamma import gamma_quantile


@pytest.mark.parametrize(
    ("p", "degrees", "chi_square"),
    [
        (0.975, 1, 5.024),  # the tables at the end of any textbook
        (0.025, 1, 0.000982),
        (0.975, 2, 7.378),
        (0.025, 10, 3.247),
        (0.975, 10, 20.483),
        (0.025, 100, 74.222),
        (0.975, 100, 129.561),
    ],
)
def test_quantiles_are_half_those_of_chi_square(p: float, degrees: int, chi_square: float) -> None:
    assert 2 * gamma_quantile(p, degrees / 2) == pytest.approx(chi_square, rel=2e-4)


def test_one_jump_is_exponential() -> None:
    assert gamma_quantile(0.975, 1) == pytest.approx(-math.log(0.025), rel=1e-9)


def test_shapes_of_any_size_are_in_order() -> None:
    shapes = [0.001, 0.05, 0.3, 1, 7, 100, 9e4, 1.1e5, 1e9]
    for p in (0.025, 0.975):
        found = [gamma_quantile(p, shape) for shape in shapes]
        assert found == sorted(found)
    assert gamma_quantile(0.975, 1e9) == pytest.approx(1e9 + 1.95996 * math.sqrt(1e9), rel=1e-8)
