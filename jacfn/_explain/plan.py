"""The plan that ``explain`` returns (L3)."""

from __future__ import annotations

import dataclasses

from jacfn._explain.records import Caution, LeafPlan, MethodPlan, SecondPlan
from jacfn._explain.table import byte_text, item, leaf_table, method_table


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """What the transforms would do with a function, as :func:`jacfn.explain` found it. Prints as a table.

    Attributes:
        leaves: a record for each differentiated leaf, in order: ``path``, ``shape`` (of one sample), ``rule`` (the
            operations in closed form, ``'vjp'``, both as in ``'linear + vjp'``, or ``'zero'``), ``reason`` (why not in
            closed form: operation and call site), ``uses`` (calls in closed form), ``flops`` (of their products),
            ``bytes`` (of the result), ``closed``.
        methods: a record for each of ``'rev'``, ``'fwd'``, ``'quasilinear'``: ``name``, ``forward_passes``,
            ``backward_passes``, ``flops`` (of everything, by order of magnitude; None if unknown), ``bytes`` (of the
            result), ``samples_at_once`` and ``at_once`` (the chunk), ``peak`` (predicted bytes beyond inputs and
            result; None if unknown), ``note`` (the error, where that cannot be predicted or the method
            fails), ``fails``.
        method: what ``jacobian(method="auto")`` takes; None where it raises.
        why: the reason of that choice.
        rows: outputs of one sample.
        columns: differentiated inputs of one sample.
        samples: None without ``in_dims``.
        warnings: what fails, is slow, or differs between forward and reverse mode: records of ``kind`` and
            ``message``.
        second: by what ways second derivatives are found: a record of ``uncovered`` (why ``laplacian`` has to go by
            the gradient of ``fn``; empty where rules cover it), ``no_forward`` (why ``hessian`` is not forward over
            reverse; empty where it is), ``fails`` (why it is not reverse over reverse either). None without samples
            or elements.

    Example:
        >>> import torch, jacfn
        >>> plan = jacfn.explain(torch.prod, torch.ones(4))
        >>> plan.method, plan.rows, plan.columns, plan.leaves[0].rule
        ('rev', 1, 4, 'vjp')
    """

    leaves: tuple[LeafPlan, ...]
    methods: tuple[MethodPlan, ...]
    method: str | None
    why: str
    rows: int
    columns: int
    samples: int | None
    warnings: tuple[Caution, ...]
    second: SecondPlan | None

    def __str__(self) -> str:
        parts = [leaf_table(self.leaves), method_table(self.methods, self.method)]
        if self.warnings:
            parts.append("\n".join(item(str(warning)) for warning in self.warnings))
        if self.second is not None:
            parts.append(str(self.second))
        return "\n\n".join([*parts, self.summary])

    __repr__ = __str__

    @property
    def summary(self) -> str:
        """The last line of the table."""
        closed, count = sum(leaf.closed for leaf in self.leaves), len(self.warnings)
        size = byte_text(sum(leaf.bytes for leaf in self.leaves))
        rows = f"{self.rows} rows" if self.samples is None else f"{self.samples} x {self.rows} rows"
        return (
            f"{f'jac_{self.method}' if self.method else 'jacobian raises'}: {closed} of {len(self.leaves)} leaves in "
            f"closed form, {rows}, {self.columns} columns, {size} result, "
            f"{count or 'no'} warning{'s' * (count != 1)}"
        )
