"""Quantiles of Student's distribution (L4); the only module of this package that needs SciPy."""

from __future__ import annotations

from jacfn._errors import JacfnError, JacfnValueError


def quantile(level: float, degrees: float) -> float:
    """How many standard errors make a two-sided interval of this level."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise JacfnError("confidence_interval needs SciPy: pip install 'jacfn[scipy]'") from error
    if not 0 < level < 1:
        raise JacfnValueError(f"level must lie between 0 and 1, got {level!r}: 0.95 for 95 %")
    if degrees < 1:
        raise JacfnError(f"confidence_interval: there are {degrees} degrees of freedom, and it needs at least one")
    return float(t.ppf(0.5 + level / 2, degrees))
