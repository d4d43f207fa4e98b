"""torch-levenberg-marquardt takes the same steps with jacfn's Jacobians as with its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import Shared, cnn, mlp
from torch import nn

from jacfn.integrations import torch_levenberg_marquardt as adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

MISSING = (
    "needs torch-levenberg-marquardt: pip install --no-deps torch-levenberg-marquardt pytorch-lightning "
    "lightning-utilities torchmetrics"
)


@pytest.fixture
def package():
    """The package itself."""
    return pytest.importorskip("torch_levenberg_marquardt", reason=MISSING, exc_type=ImportError)


def pair(package, make, **options):
    """Theirs and ours, on networks of the same weights."""
    modules = []
    for kind in (package.training.LevenbergMarquardtModule, adapter.LevenbergMarquardtModule):
        torch.manual_seed(0)
        given = {name: value() if callable(value) else value for name, value in options.items()}
        modules.append(kind(make(), **given))
    return modules


def steps(module, x, y, count=5):
    """Losses and weights after each step."""
    torch.manual_seed(1)
    result = []
    for _ in range(count):
        outputs, loss, stop, logs = module.training_step(x, y)
        result.append((outputs, loss, logs["damping"], stop, module.flat_params.clone()))
    return result


def assert_same_steps(modules, x, y, **kwargs):
    theirs, ours = (steps(module, x, y, **kwargs) for module in modules)
    for (f, loss, damping, stop, weights), (g, cost, factor, end, same) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(g, f, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(cost, loss, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(same, weights, rtol=1e-5, atol=1e-7)
        assert (factor, end) == (damping, stop)


NETS = {
    "tall": (lambda: mlp(1, 5, 1), (40, 1), (40, 1)),
    "wide": (lambda: mlp(3, 20, 20, 2), (6, 3), (6, 2)),
    "cnn": (cnn, (5, 1, 8, 8), (5, 4)),
    "shared": (lambda: Shared(3), (30, 3), (30, 3)),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_vmap": False},
        {"max_batch_size": 4},
        {"solve_method": "cholesky"},
        {"memory": "1MiB"},
    ],
    ids=str,
)
@pytest.mark.parametrize("net", NETS)
def test_the_same_steps_are_taken(package, float64, net, options):
    make, inputs, outputs = NETS[net]
    x, y = torch.randn(inputs), torch.randn(outputs)
    theirs, ours = {key: value for key, value in options.items() if key != "memory"}, options
    modules = [pair(package, make, **theirs)[0], _ours(make, ours)]
    assert_same_steps(modules, x, y)


def _ours(make, options):
    torch.manual_seed(0)
    return adapter.LevenbergMarquardtModule(make(), **options)


@pytest.mark.parametrize("net", ["tall", "wide"])
def test_a_subset_of_the_weights_is_trained(package, float64, net):
    make, inputs, outputs = NETS[net]
    x, y = torch.randn(inputs), torch.randn(outputs)
    modules = pair(package, make)
    for module in modules:
        module.param_selection_strategy = package.selection.RandomSelectionStrategy(module.model.parameters(), 7)
    assert_same_steps(modules, x, y)


def test_other_losses_have_their_own_residuals(package, float64):
    modules = pair(package, lambda: mlp(3, 4, 3), loss_fn=package.loss.CrossEntropyLoss)
    assert_same_steps(modules, torch.randn(30, 3), torch.randint(3, (30,)))


def test_the_hook_hands_over_rows_or_products(package, float64):
    make, inputs, outputs = NETS["wide"]
    x, y = torch.randn(inputs), torch.randn(outputs)
    theirs, ours = (module._compute_jacobian(x, y, None) for module in pair(package, make))
    dense = theirs[0]
    rows = ours[0]
    assert not isinstance(rows, torch.Tensor)
    torch.testing.assert_close(rows @ rows.t(), dense @ dense.t())
    torch.testing.assert_close(rows.t() @ rows, dense.t() @ dense)
    torch.testing.assert_close(rows.t().matmul(ours[1]), dense.t() @ theirs[1])
    torch.testing.assert_close(ours[1:], theirs[1:])
    ours = pair(package, NETS["tall"][0])[1]._compute_jacobian(torch.randn(40, 1), torch.randn(40, 1), None)
    assert isinstance(ours[0], torch.Tensor)


@pytest.mark.parametrize(
    ("layer", "message"),
    [(nn.BatchNorm1d(4), "call module.eval\\(\\) first"), (nn.Dropout(), "called random operation")],
    ids=["batch norm", "dropout"],
)
def test_what_is_no_function_of_a_sample_is_refused(package, layer, message):
    module = adapter.LevenbergMarquardtModule(nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1)))
    with pytest.raises(RuntimeError, match=message):
        module.training_step(torch.randn(50, 3), torch.randn(50, 1))


def test_without_the_package_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['torch_levenberg_marquardt'] = None\n"
        "from jacfn.integrations.torch_levenberg_marquardt import LevenbergMarquardtModule as Module\n"
        "Module(None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (
        "MissingPackageError: this adapter needs torch-levenberg-marquardt: pip install torch-levenberg-marquardt"
        in done.stderr
    )
