"""Operations that PyTorch differentiates wrongly, slowly or not at all under transforms, put right (L0).

``fn`` runs inside :func:`exact_kernels`. Most of the tables are operations whose *second* derivative is silently wrong
when one of the two is taken under vmap or by forward mode: their derivative formulas take what was saved from the
forward pass (statistics, an LU factorisation) for constants. Where more than one derivative is under way they are
replaced by the elementary operations that define them. The tests hold every entry against finite differences, and
show that PyTorch alone still fails, so an entry goes when PyTorch mends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from jacfn._exact import (  # noqa: F401  (fill the tables)
    bessel,
    composites,
    determinants,
    elementwise,
    functions,
    norms,
    places,
    products,
    solves,
    underived,
)
from jacfn._exact.tables import ALWAYS, MAPPED, NESTED
from jacfn._torch import derivative_levels

__all__ = ["ALWAYS", "MAPPED", "NESTED", "ExactKernels", "exact_kernels"]


@contextlib.contextmanager
def exact_kernels() -> Iterator[None]:
    """The replacements, and attention by the MATH backend: its fused kernels have no batching rules and no jvps."""
    with _no_fast_path(), sdpa_kernel(SDPBackend.MATH), ExactKernels():
        yield


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Transformer layers by their parts, which their fused inference kernel would hide."""
    if torch.compiler.is_compiling():  # refuses to trace the switch; what is compiled has no fast path
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class ExactKernels(TorchFunctionMode):
    """Puts the replacements in the place of the calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call, or what replaces it."""
        kwargs = kwargs or {}
        if any(getattr(kind, "has_rules", False) for kind in types):  # derivatives by other means than PyTorch's
            return func(*args, **kwargs)
        replacement = ALWAYS.get(func)
        if func in NESTED and derivative_levels((*args, *kwargs.values())) > 1:
            replacement = NESTED[func]
        if func in MAPPED and derivative_levels((*args, *kwargs.values()), mapped=True) > 1:
            replacement = MAPPED[func]
        result = NotImplemented if replacement is None else replacement(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result
