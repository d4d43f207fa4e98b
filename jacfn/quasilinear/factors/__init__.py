"""The canonical forms and their algebra (L2).

A parameter that enters its operation linearly has the Jacobian ``cotangent x input``. A rule says which form an
operation has and how its tensors are laid out (a *layout*); what the form *is* stands here, once.

Axes: ``N`` samples, ``R`` rows (cotangents), ``G`` groups, ``T`` positions that share the weight, ``O`` and ``I``
the weight's outputs and inputs, ``V`` the rows of a table and ``D`` what is in one of them, ``S`` vectors that are
multiplied. Every form takes

* ``lay(delta)``: cotangents ``(R, N, *y)`` of the output, laid out as the form wants them,
* ``prepare(x)``: the captured input ``(N, ...)``, likewise, once for all rows,
* ``rows(delta, x)``: the Jacobian ``(N, R, *leaf)`` from both, in new memory; ``write`` puts it into ``out``,
* ``mv(delta, x, v)``: ``(N, R, S)``, its products with a stack of vectors ``(S, *leaf)``,
* ``rmv(delta, x, u)``: ``(S, *leaf)``, the sums of its rows with the coefficients ``(N, R, S)``.

The Jacobian is linear in ``delta``. A :class:`Term` is a form with its two tensors, a :class:`Leaf` the sum of all
terms of one parameter.
"""

from jacfn.quasilinear.factors.arranged import Arranged
from jacfn.quasilinear.factors.dense import Dense
from jacfn.quasilinear.factors.gather import Gather
from jacfn.quasilinear.factors.leaf import Leaf
from jacfn.quasilinear.factors.matmul import Layout, Matmul
from jacfn.quasilinear.factors.pointwise import Scale, Shift
from jacfn.quasilinear.factors.terms import Form, Term, joined

__all__ = [
    "Arranged",
    "Dense",
    "Form",
    "Gather",
    "Layout",
    "Leaf",
    "Matmul",
    "Scale",
    "Shift",
    "Term",
    "joined",
]
