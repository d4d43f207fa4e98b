"""torch-levenberg-marquardt with Jacobians from closed forms (L5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacfn._memory import Budget
from jacfn.functional import make_functional
from jacfn.integrations._missing import stand_in
from jacfn.operator.build import jacobian_operator
from jacfn.operator.jacobian import JacobianOperator

try:
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule as _Theirs
    from torch_levenberg_marquardt.tree import tree_unsqueeze
except ImportError:
    _Theirs = stand_in("torch-levenberg-marquardt", "pip install torch-levenberg-marquardt")


class LevenbergMarquardtModule(_Theirs):  # type: ignore[misc]
    """``torch_levenberg_marquardt.training.LevenbergMarquardtModule`` whose Jacobians come from jacfn.

    It takes the place of that class; steps, damping and stops remain the package's own. With at least as many residuals
    as weights it gets the dense Jacobian. With fewer it gets products: ``J Jᵀ`` comes from the factors of the layers,
    and no ``(M, P)`` matrix is formed.

    Args:
        args: as theirs: ``model``, ``loss_fn``, ``damping_strategy`` and so on.
        memory: a budget for what is allocated beyond inputs and results, as in :func:`jacfn.jacobian_operator`.
        kwargs: as theirs. ``use_vmap=False`` takes the residuals of the batch as one function: for models and losses
            that mix samples. ``max_batch_size`` remains for many residuals; with few the factors of all samples are
            held at once.

    Raises:
        JacfnError: the package is not installed; at a step, the model is no function of one sample (a batch norm in
            training mode).
        RuntimeError: at a step, the model is random (a dropout in training mode): call ``model.eval()`` first.

    Cost: as of :func:`jacfn.jacobian_operator`, and one forward pass for the outputs.

    .. code-block:: python

        import torch
        from jacfn.integrations.torch_levenberg_marquardt import LevenbergMarquardtModule

        x = torch.linspace(-1, 1, 200).unsqueeze(1)
        y = torch.sinc(10 * x)
        net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        module = LevenbergMarquardtModule(net, learning_rate=1.0, attempts_per_step=10)
        for _ in range(50):
            outputs, loss, stop, logs = module.training_step(x, y)
    """

    def __init__(self, *args: Any, memory: Budget = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = memory
        self._of_sample = make_functional(self.model)[0]
        self._of_batch = make_functional(self.model, batched=True)[0]

    def _compute_jacobian(self, inputs: Any, targets: Any, param_indices: Tensor | None) -> tuple[Any, Tensor, Any]:
        """The hook: ``(J, residuals (M, 1), outputs)``."""
        params = {name: p.detach() for name, p in self._params.items()}
        fn, in_dims = (self._sample_residuals, (None, 0, 0)) if self.use_vmap else (self._batch_residuals, None)
        jacobian = jacobian_operator(
            fn, params, inputs, targets, in_dims=in_dims, memory=self._memory, differentiable=False
        )
        m, p = jacobian.shape
        rows: Tensor | _Rows
        if param_indices is not None:
            rows = jacobian.materialize()[:, param_indices]
        else:
            rows = jacobian.materialize() if m >= p else _Rows(jacobian)
        with torch.no_grad():
            return rows, jacobian.value.reshape(-1, 1), self.forward(inputs)

    def _sliced_gauss_newton_underdetermined(
        self, inputs: Any, targets: Any, param_indices: Tensor | None
    ) -> tuple[Any, Tensor, Tensor, Any]:
        """Whole: theirs holds the dense rows of all slices, which take more than the factors do."""
        rows, residuals, outputs = self._compute_jacobian(inputs, targets, param_indices)
        return rows, rows @ rows.t(), residuals, outputs

    def _sample_residuals(self, params: Any, x: Any, y: Any) -> Tensor:
        outputs = self._of_sample(params, *_positional(x))
        residuals: Tensor = self.loss_fn.residuals(tree_unsqueeze(outputs, 0), tree_unsqueeze(y, 0))
        return residuals.squeeze(0)

    def _batch_residuals(self, params: Any, x: Any, y: Any) -> Tensor:
        residuals: Tensor = self.loss_fn.residuals(self._of_batch(params, *_positional(x)), y)
        return residuals


class _Rows:
    """``J`` as far as a step needs it: ``J Jᵀ``, ``JᵀJ`` and ``Jᵀ u``."""

    def __init__(self, jacobian: JacobianOperator) -> None:
        self.jacobian = jacobian

    def t(self) -> _Columns:
        return _Columns(self.jacobian)

    def __matmul__(self, other: _Columns) -> Tensor:
        return self.jacobian.gram()


class _Columns:
    """``Jᵀ``."""

    def __init__(self, jacobian: JacobianOperator) -> None:
        self.jacobian = jacobian

    def __matmul__(self, other: _Rows | Tensor) -> Tensor:
        return self.jacobian.normal() if isinstance(other, _Rows) else self.jacobian.T @ other

    matmul = __matmul__


def _positional(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
