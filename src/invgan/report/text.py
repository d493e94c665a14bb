"""Numbers as the report's readers want them, with the true minus sign."""

import numbers
from typing import Any

import numpy as np


def counted(count: int | np.integer, noun: str) -> str:
    """A number with its noun.

    Examples
    --------
    >>> counted(1, "row"), counted(12000, "row"), counted(3, "anomaly")
    ('1 row', '12,000 rows', '3 anomalies')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{shown(count)} {noun if count == 1 else plural}"


def nats(value: float) -> str:
    """A log-likelihood: two decimals, and none where they say nothing.

    Examples
    --------
    >>> nats(-12.345), nats(-1234567.8), nats(-2e30), nats(-np.inf)
    ('−12.35', '−1,234,568', '−2.000e+30', '−∞')
    """
    size = abs(value)
    if not np.isfinite(size):
        text = f"{value:.0f}"
    elif size < 1e4:
        text = f"{value:.2f}"
    else:
        text = f"{value:,.0f}" if size < 1e9 else f"{value:.3e}"
    return _typographic(text)


def shown(value: Any) -> str:
    """Any value: whole numbers in full, others in about five digits, NaN as missing, the rest as it prints.

    Examples
    --------
    >>> shown(-12000), shown(2024.0), shown(0.1 + 0.2), shown(654321.5), shown(1e-7)
    ('−12,000', '2024', '0.3', '654,322', '1e-07')
    >>> shown(np.float32("nan")), shown("a-b"), shown(True)
    ('missing', 'a-b', 'True')
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    number = float(value)
    size = abs(number)
    if np.isnan(number):
        return "missing"
    if number.is_integer() and size < 1e15:
        return _typographic(f"{number:,.0f}" if size >= 1e4 else f"{number:.0f}")
    return _typographic(f"{number:,.0f}" if 1e5 <= size < 1e9 else f"{number:.5g}")


def with_spread(mean: float, std: float) -> str:
    """A mean and its standard deviation, which has two digits, to the same place.

    Examples
    --------
    >>> with_spread(72.34, 11.2), with_spread(-0.5, 0.0312), with_spread(41234, 1530), with_spread(-0.2, 9.96)
    ('72 ± 11', '−0.500 ± 0.031', '41,200 ± 1,500', '0 ± 10')
    """
    if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
        return f"{shown(mean)} ± {shown(std)}"
    decimals = 1 - int(f"{std:.1e}"[4:])  # the exponent after rounding: 9.96 counts as 10
    if decimals > 6 or decimals < -7:
        return _typographic(f"{mean:.3g} ± {std:.2g}")
    mean, std = round(mean, decimals) + 0.0, round(std, decimals)  # never −0
    places, comma = max(decimals, 0), "," if abs(mean) >= 1e4 else ""
    return _typographic(f"{mean:{comma}.{places}f} ± {std:{comma}.{places}f}")


def _typographic(text: str) -> str:
    """The signs that a typesetter would use."""
    # Not in exponents, where the plain one is the convention.
    return (f"−{text[1:]}" if text.startswith("-") else text).replace("inf", "∞")
