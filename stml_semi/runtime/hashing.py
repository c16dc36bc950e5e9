"""Numbers that look random and are a function of what goes in."""

from torch import Tensor

# Odd constants of splitmix64, as signed numbers: int64 products wrap around like unsigned ones.
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mix(x: Tensor) -> Tensor:
    """Hashes every element of an int64 tensor: every bit of the result depends on every bit of x.

    Source: the finalizer of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014).
    """
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
