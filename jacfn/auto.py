"""``jacobian`` (L2): the transform that needs the fewest passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from jacfn._binding import Argnums, Bound, bind
from jacfn._errors import JacfnValueError
from jacfn._evaluate import Options
from jacfn._memory import Budget, log
from jacfn._selection import Selection
from jacfn.dense import jac_fwd, jac_rev
from jacfn.quasilinear.structure import Structure
from jacfn.quasilinear.transform import jac_quasilinear, known_structure

Method = Literal["auto", "rev", "fwd", "quasilinear"]


def jacobian(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    method: Method = "auto",
    has_aux: bool = False,
    return_value: bool = False,
    in_dims: Any = None,
    rows: Selection = None,
    columns: Selection = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
) -> Callable[..., Any]:
    """The Jacobian of ``fn`` by the method that needs the fewest passes.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        method: ``"rev"``, ``"fwd"`` or ``"quasilinear"`` for :func:`jacfn.jac_rev`, :func:`jacfn.jac_fwd` or
            :func:`jacfn.jac_quasilinear`; ``"auto"`` counts: forward mode takes one pass a column, reverse mode one a
            row (of one sample: samples share passes). Where there are fewer columns than rows it takes forward mode;
            else the quasi-linear rule if any parameter enters an operation linearly, and reverse mode if none does.
        has_aux: ``fn`` returns ``(output, aux)``.
        return_value: return the value beside the Jacobian.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`.
        rows: rows to compute (reverse methods only), as in :func:`jacfn.jac_rev`.
        columns: columns to compute (forward mode only), as in :func:`jacfn.jac_fwd`.
        chunk_size: how many rows or columns are evaluated at once.
        memory: a budget such as ``"512MiB"`` from which the chunk size is derived.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.

    Returns:
        A function of the arguments of ``fn`` with the result of the chosen transform, all of which agree.

    Raises:
        JacfnError: an argument does not fit; rows and columns are both given, or do not fit the method.

    Cost: that of the chosen transform. ``"auto"`` runs ``fn`` on one sample at the first call with new shapes, to
    count. The choice is logged by the logger ``jacfn`` at level DEBUG.

    Example:
        >>> import torch
        >>> from jacfn import jacobian
        >>> jacobian(lambda t: torch.stack([t, t**2, t**3]))(torch.tensor(2.0))  # one column: forward mode
        tensor([ 1.,  4., 12.])
        >>> jacobian(lambda x: x.prod())(torch.tensor([2.0, 3.0]))  # one row: reverse mode
        tensor([3., 2.])

    The rule of thumb is that of Griewank and Walther, Evaluating Derivatives (2008), section 3.
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    _check(method, rows, columns)
    common: dict[str, Any] = {"has_aux": has_aux, "return_value": return_value, "in_dims": in_dims}
    common |= {"chunk_size": chunk_size, "memory": memory, "randomness": randomness}
    common |= {"differentiable": differentiable}

    # Built once, so that what is learnt about fn, and the plans made for it, are found again.
    transforms = {
        "rev": jac_rev(fn, argnums, rows=rows, **common),
        "fwd": jac_fwd(fn, argnums, columns=columns, **common),
        "quasilinear": jac_quasilinear(fn, argnums, rows=rows, **common),
    }

    def transformed(*args: Any, **kwargs: Any) -> Any:
        chosen: str = method
        if method == "auto" and columns is not None:
            chosen = "fwd"
        elif method == "auto":
            bound = bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims)
            chosen, why, _ = choose_method(bound, options, rows=rows)
            log.debug("jacobian: %s, %s", chosen, why)
        return transforms[chosen](*args, **kwargs)

    return transformed


class Choice(NamedTuple):
    """The method that ``"auto"`` takes, and why."""

    method: str
    why: str
    structure: Structure


def choose_method(bound: Bound, options: Options, *, rows: Selection = None) -> Choice:
    """Count passes: one a column, or one a row; see :func:`jacobian`."""
    structure = known_structure(bound, options)
    columns = sum(leaf.size for leaf in bound.leaf_types)
    counts = f"for {structure.rows} rows and {columns} columns"
    if rows is None and columns < structure.rows:
        return Choice("fwd", counts, structure)
    if structure.claims:
        return Choice("quasilinear", f"{counts}, with closed forms", structure)
    return Choice("rev", f"{counts}, without closed forms", structure)


def _check(method: str, rows: Selection, columns: Selection) -> None:
    if method not in get_args(Method):
        raise JacfnValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if rows is not None and columns is not None:
        raise JacfnValueError("rows and columns cannot be chosen at once: index the result of one of them")
    if rows is not None and method == "fwd":
        raise JacfnValueError("rows: forward mode computes columns; give columns, or method='rev' or 'quasilinear'")
    if columns is not None and method in ("rev", "quasilinear"):
        raise JacfnValueError(f"columns: method={method!r} computes rows; give rows, or method='fwd'")
