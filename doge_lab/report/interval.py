"""What several seeds say: a mean, and how far it may be off.

    mean ± t(n − 1) · s / sqrt(n)        s the standard deviation with n − 1; 95 % when seeds are normal

Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1 ; many degrees of freedom: Hill 1970,
https://doi.org/10.1145/355598.355600 (the expansion about the normal quantile)
"""

from collections.abc import Sequence
from statistics import fmean, stdev

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z_975 = 1.959964


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom, to three figures."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def t_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the 95 % t interval; None where one value gives no interval."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5
