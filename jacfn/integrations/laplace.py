"""A curvature backend for laplace-torch (L5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._memory import Budget
from jacfn.functional import make_functional
from jacfn.integrations._missing import stand_in
from jacfn.operator.build import jacobian_operator
from jacfn.operator.jacobian import JacobianOperator

try:
    from laplace.curvature import GGNInterface
except ImportError:
    GGNInterface = stand_in("laplace-torch", "pip install laplace-torch")


class JacfnGGN(GGNInterface):  # type: ignore[misc]
    """The generalised Gauss-Newton matrix and Jacobians for ``Laplace(..., backend=JacfnGGN)``.

    Exact for all weights, the last layer and a subnetwork, with full and diagonal matrices, and for the predictive
    distribution. Kronecker-factored approximations are other packages' business.

    Args:
        args: as laplace-torch gives them: the model, the likelihood.
        memory: a budget for what is allocated beyond inputs and results, as in :func:`jacfn.jacobian_operator`; given
            by ``backend_kwargs={"memory": "256MiB"}``.
        kwargs: as laplace-torch gives them.

    Raises:
        JacfnError: laplace-torch is not installed; the approximation asks for Kronecker factors; the model is no
            function of one sample.

    Cost: for a batch of ``N`` samples with ``K`` outputs, one forward pass and ``K`` backward passes. ``diag`` then
    takes the sum of the factors' squares and never forms rows; ``full`` takes the ``(P, P)`` product of the rows, a
    block of them at a time.

    .. code-block:: python

        import torch
        from laplace import Laplace
        from torch.utils.data import DataLoader, TensorDataset
        from jacfn.integrations.laplace import JacfnGGN

        x, y = torch.randn(100, 4), torch.randint(3, (100,))
        net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        la = Laplace(net, "classification", "all", "diag", backend=JacfnGGN)
        la.fit(DataLoader(TensorDataset(x, y), batch_size=50))
        probabilities = la(x[:5])

    Daxberger et al. (2021, arXiv:2106.14806) describe laplace-torch and where it needs which matrix.
    """

    def __init__(self, *args: Any, memory: Budget = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fn = make_functional(self._model)[0]
        self._memory = memory

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """``(J (N, K, P), outputs (N, K))``, with derivatives where ``enable_backprop``."""
        jacobian, f = self._linearised(x, enable_backprop)
        rows = self._subnetwork(jacobian).materialize()
        if self.subnetwork_indices is not None:
            rows = rows[:, self._order()]
        return rows.reshape(len(f), -1, rows.shape[1]), f

    last_layer_jacobians = jacobians  # which layers take part was said to the constructor

    def selected_output_jacobians(
        self, x: Any, outputs: Tensor, enable_backprop: bool = False
    ) -> tuple[Tensor, Tensor]:
        """``(J (N, S, P), outputs (N, K))`` for the outputs ``(N,)`` or ``(N, S)`` of each sample."""
        jacobian, f = self._linearised(x, enable_backprop)
        n = len(f)
        chosen = outputs.reshape(n, -1).to(f.device)
        first = torch.arange(n, device=f.device).unsqueeze(1) * (jacobian.shape[0] // n)
        rows = jacobian.restrict(rows=(first + chosen).reshape(-1)).materialize()
        return rows.reshape(*chosen.shape, -1), f

    def full(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``(loss, JᵀHJ (P, P))``, summed over the batch; ``H`` is the Hessian of the loss of each sample."""
        jacobian, f = self._linearised(x)
        ggn = self._subnetwork(jacobian).normal(self._weights(f))
        if self.subnetwork_indices is not None:
            order = self._order()
            ggn = ggn[order][:, order]
        return self._loss(f, y), ggn

    def diag(self, x: Any, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``(loss, the diagonal of JᵀHJ (P,))``, summed over the batch."""
        jacobian, f = self._linearised(x)
        weights = self._weights(f)
        ones = torch.ones(jacobian.shape[0], dtype=jacobian.dtype, device=jacobian.device)
        diagonal = jacobian.ggn_diagonal(ones if weights is None else weights)
        if self.subnetwork_indices is not None:
            diagonal = diagonal[self.subnetwork_indices]
        return self._loss(f, y), diagonal

    def kron(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise JacfnError(
            "JacfnGGN computes exact matrices and has no Kronecker factors: give hessian_structure='full' or 'diag', "
            "or backend=laplace.curvature.CurvlinopsGGN for 'kron'"
        )

    def _linearised(self, x: Any, enable_backprop: bool = False) -> tuple[JacobianOperator, Tensor]:
        """The Jacobian with respect to the weights that take part, and the outputs of the model."""
        if self.last_layer:
            with torch.set_grad_enabled(enable_backprop):
                f, x = self.model.forward_with_features(x)
        x = dict(x) if isinstance(x, Mapping) else x
        dims = {key: 0 if isinstance(value, Tensor) else None for key, value in x.items()} if isinstance(x, dict) else 0
        jacobian = jacobian_operator(
            self._fn, self.params_dict, x, in_dims=(None, dims), memory=self._memory, differentiable=enable_backprop
        )
        return jacobian, f if self.last_layer else jacobian.value

    def _weights(self, f: Tensor) -> Tensor | None:
        """The Hessian of the loss of each sample with respect to its outputs, ``(N, K, K)``; None is the identity."""
        weights: Tensor | None = (
            self._get_mc_functional_fisher(f) if self.stochastic else self._get_functional_hessian(f)
        )
        return weights

    def _loss(self, f: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.factor * self.lossfunc(f, y)
        return loss.detach()

    def _subnetwork(self, jacobian: JacobianOperator) -> JacobianOperator:
        """The columns of the subnetwork, in ascending order."""
        if self.subnetwork_indices is None:
            return jacobian
        mask = torch.zeros(jacobian.shape[1], dtype=torch.bool, device=jacobian.device)
        mask[self.subnetwork_indices] = True
        return jacobian.restrict(mask=mask)

    def _order(self) -> Tensor:
        """Where each index of the subnetwork stands among them in ascending order."""
        order: Tensor = self.subnetwork_indices.argsort().argsort()
        return order


def use_jacfn(approximation: Any) -> Any:
    """Give a functional Laplace approximation this backend, before it is fitted.

    When it is made, ``hessian_structure="gp"`` accepts three backends of laplace-torch's own alone.

    Args:
        approximation: what ``Laplace(..., hessian_structure="gp")`` returned.

    Returns:
        The same object.

    Raises:
        JacfnError: the approximation has been fitted.

    Cost: none.

    .. code-block:: python

        la = use_jacfn(Laplace(net, "regression", "all", "gp", n_subset=20))
    """
    if approximation._backend is not None:
        raise JacfnError("the approximation has evaluated a backend already: give it to use_jacfn before fit()")
    approximation._backend_cls = JacfnGGN
    return approximation
