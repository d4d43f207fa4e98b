"""Laplace approximations with jacfn's curvature are those with laplace-torch's own backends."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import Shared, cnn, mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jacfn import JacfnError
from jacfn.integrations import laplace as adapter

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float64")]  # theirs warn

MISSING = (
    "needs laplace-torch: pip install --no-deps laplace-torch torchmetrics lightning-utilities asdfghjkl==0.1a4 "
    "backpack-for-pytorch curvlinops-for-pytorch"
)


@pytest.fixture
def package():
    """The package itself."""
    return pytest.importorskip("laplace", reason=MISSING, exc_type=ImportError)


def theirs(package, name="CurvlinopsGGN"):
    """A backend of the package, where it is installed."""
    backend = getattr(package.curvature, name, None)
    return backend or pytest.skip(f"this laplace-torch has no {name}")


def problem(likelihood, net="mlp"):
    """A network, inputs and targets."""
    torch.manual_seed(0)
    nets = {"mlp": lambda: mlp(3, 5, 4), "cnn": cnn, "shared": lambda: nn.Sequential(Shared(3), nn.Linear(3, 4))}
    x = torch.randn(12, 1, 8, 8) if net == "cnn" else torch.randn(12, 3)
    y = torch.randn(12, 4) if likelihood == "regression" else torch.randint(4, (12,))
    return nets[net](), x, y


def fitted(package, backend, likelihood, subset, structure, net="mlp", **options):
    model, x, y = problem(likelihood, net)
    approximation = package.Laplace(model, likelihood, subset, structure, backend=backend, **options)
    approximation.fit(DataLoader(TensorDataset(x, y), batch_size=5))
    return approximation, x


LIKELIHOODS = ["regression", "classification"]


@pytest.mark.parametrize("name", ["CurvlinopsGGN", "AsdlGGN", "BackPackGGN", "GGNInterface"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
@pytest.mark.parametrize("structure", ["full", "diag"])
def test_matrices_and_predictions_agree_with_every_backend(package, name, likelihood, subset, structure):
    ours, x = fitted(package, adapter.JacfnGGN, likelihood, subset, structure)
    other, _ = fitted(package, theirs(package, name), likelihood, subset, structure)
    torch.testing.assert_close(ours.H, other.H)
    torch.testing.assert_close(torch.as_tensor(ours.loss), torch.as_tensor(other.loss))
    torch.testing.assert_close(ours.log_marginal_likelihood(), other.log_marginal_likelihood())
    torch.testing.assert_close(ours(x), other(x))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("net", ["cnn", "shared"])
@pytest.mark.parametrize("memory", [None, "1MiB"])
def test_other_networks_within_a_budget(package, likelihood, structure, net, memory):
    options = {"backend_kwargs": {"memory": memory}}
    ours, x = fitted(package, adapter.JacfnGGN, likelihood, "all", structure, net, **options)
    other, _ = fitted(package, theirs(package, "GGNInterface"), likelihood, "all", structure, net)
    torch.testing.assert_close(ours.H, other.H)
    torch.testing.assert_close(ours(x), other(x))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("indices", [[3, 4, 5, 20], [20, 3, 41, 0]], ids=["ascending", "mixed"])
def test_a_subnetwork_has_its_columns_in_the_given_order(package, likelihood, structure, indices):
    options = {"subnetwork_indices": torch.tensor(indices)}
    ours, x = fitted(package, adapter.JacfnGGN, likelihood, "subnetwork", structure, **options)
    other, _ = fitted(package, theirs(package, "GGNInterface"), likelihood, "subnetwork", structure, **options)
    torch.testing.assert_close(ours.H, other.H)
    torch.testing.assert_close(ours.backend.jacobians(x), other.backend.jacobians(x))
    torch.testing.assert_close(ours(x), other(x))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_frozen_weights_take_no_part(package, likelihood, subset):
    def approximation(backend):
        model, x, y = problem(likelihood)
        model[0].bias.requires_grad_(False)
        result = package.Laplace(model, likelihood, subset, "diag", backend=backend)
        result.fit(DataLoader(TensorDataset(x, y), batch_size=5))
        return result

    torch.testing.assert_close(approximation(adapter.JacfnGGN).H, approximation(theirs(package)).H)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_functional_approximations_take_the_backend_afterwards(package, likelihood, subset):
    def approximation(change):
        model, x, y = problem(likelihood)
        backend = theirs(package)
        result = change(package.Laplace(model, likelihood, subset, "gp", n_subset=8, backend=backend))
        result.fit(DataLoader(TensorDataset(x, y), batch_size=5))
        return result, x

    ours, x = approximation(adapter.use_jacfn)
    other, _ = approximation(lambda made: made)
    assert isinstance(ours.backend, adapter.JacfnGGN)
    torch.testing.assert_close(ours(x), other(x))
    with pytest.raises(JacfnError, match="give it to use_jacfn before fit"):
        adapter.use_jacfn(ours)


def backends(package, likelihood="regression", net="mlp", **options):
    model, x, _ = problem(likelihood, net)
    return adapter.JacfnGGN(model, likelihood, **options), package.curvature.GGNInterface(model, likelihood), x


@pytest.mark.parametrize("net", ["mlp", "cnn", "shared"])
def test_jacobians_carry_derivatives_where_asked(package, net):
    ours, other, x = backends(package, net=net)
    jac, f = ours.jacobians(x)
    assert not jac.requires_grad
    assert not f.requires_grad
    torch.testing.assert_close((jac, f), other.jacobians(x))
    gradients = []
    for backend in (ours, other):
        x = x.detach().requires_grad_()
        jac, f = backend.jacobians(x, enable_backprop=True)
        gradients.append(torch.autograd.grad(jac.square().sum() + f.square().sum(), x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("outputs", [[0, 3, 1] * 4, [[0, 3], [1, 1], [2, 0]] * 4], ids=["one", "two"])
@pytest.mark.parametrize("backprop", [False, True])
def test_some_outputs_alone(package, outputs, backprop):
    ours, other, x = backends(package)
    chosen = torch.tensor(outputs)
    jac, f = ours.selected_output_jacobians(x, chosen, enable_backprop=backprop)
    wanted = other.selected_output_jacobians(x, chosen, enable_backprop=backprop)
    torch.testing.assert_close((jac, f), wanted)
    assert jac.requires_grad == backprop


class OfDictionaries(nn.Module):
    """A model of a dictionary of inputs, as language models are."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, data):
        return self.head((self.table(data["input_ids"]) * data["attention_mask"].unsqueeze(2)).sum(1))


@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_inputs_may_be_a_dictionary(package, subset):
    model = OfDictionaries()
    batch = {"input_ids": torch.randint(7, (6, 5)), "attention_mask": torch.ones(6, 5), "labels": torch.arange(6) % 4}
    results = []
    for backend in (adapter.JacfnGGN, theirs(package, "GGNInterface")):
        approximation = package.Laplace(model, "classification", subset, "diag", backend=backend)
        approximation.fit(_Loader([batch], 6))
        results.append(approximation.H)
    torch.testing.assert_close(*results)


class _Loader(list):
    """What laplace-torch asks of a loader besides iterating."""

    def __init__(self, batches, samples):
        super().__init__(batches)
        self.dataset = range(samples)


def test_the_stochastic_fisher_uses_the_samples_of_the_package(package):
    model, x, y = problem("classification")
    ours = adapter.JacfnGGN(model, "classification", stochastic=True)
    other = package.curvature.GGNInterface(model, "classification", stochastic=True)
    for name in ("full", "diag"):
        results = []
        for backend in (ours, other):
            torch.manual_seed(3)
            results.append(getattr(backend, name)(x, y))
        torch.testing.assert_close(*results)


def test_kronecker_factors_are_refused(package):
    with pytest.raises(JacfnError, match="has no Kronecker factors: give hessian_structure='full' or 'diag'"):
        fitted(package, adapter.JacfnGGN, "regression", "all", "kron")


def test_without_the_package_the_error_says_what_to_install():
    code = "import sys; sys.modules['laplace'] = None; from jacfn.integrations.laplace import JacfnGGN; JacfnGGN(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "MissingPackageError: this adapter needs laplace-torch: pip install laplace-torch" in done.stderr
