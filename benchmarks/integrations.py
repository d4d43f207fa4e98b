"""What other packages gain from jacfn's Jacobians: the same work by the package alone and by its adapter.

``python -m benchmarks.integrations`` prints a section for each part, with a table and its targets; ``--save`` keeps
them. Packages that are not installed are left out; ``docs/integrations.rst`` says how to install them.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jacfn.integrations.scipy import curve_fit, least_squares

from . import tables, works
from .methods import Method, Run
from .operators.compare import Compared, Part, at_least, compare, over, section
from .resident import peak_growth
from .works import Work, make_work, mlp_net

Result = dict[str, Tensor]

HOW = """\
Each time is the smaller of two medians: all methods are timed first to last, then last to first; the last block of a
table shows both. Results are checked before they are timed: the last line has the largest difference of any method
from the baseline, relative to the largest entry. ratio: time of the method / time with jacfn, above 1 means that the
method is slower. The parts of laplace-torch and torch-levenberg-marquardt are in float32, those of SciPy in float64."""

# --- the works ------------------------------------------------------------------------------------


def _small() -> Work:
    return make_work("small", "MLP 20-50-10 ReLU", mlp_net(20, 50, 10), torch.randn(500, 20))


def _sinc(samples: int = 20_000) -> Work:
    net = mlp_net(1, 20, 1, activation=nn.Tanh)
    return make_work("sinc", "1-20-1 tanh on sinc(10 x)", net, torch.linspace(-1, 1, samples)[:, None])


def _fit() -> Work:
    x = torch.rand(2000, 2, dtype=torch.float64) * 2 - 1
    return make_work("fit", "2-10-10-1 tanh, float64", mlp_net(2, 10, 10, 1, activation=nn.Tanh).double(), x)


def _large() -> Work:
    x = torch.rand(3000, 2, dtype=torch.float64) * 2 - 1
    return make_work("large", "2-64-64-1 tanh, float64", mlp_net(2, 64, 64, 1, activation=nn.Tanh).double(), x)


def _curve(samples: int) -> Work:
    """``f`` is :func:`decays`; its parameters stand where weights stand elsewhere."""
    x = torch.linspace(0, 10, samples, dtype=torch.float64)
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip("abcde", TRUTH, strict=True)}
    about = f"two decays and a background, {samples} points, float64"
    return Work(f"decays-{samples}", about, decays, decays, params, x, (), nn.Identity())


WORKS: dict[str, Callable[[], Work]] = {
    **works.WORKS,
    "small": _small,
    "sinc": _sinc,
    "fit": _fit,
    "large": _large,
    "decays-200": lambda: _curve(200),
    "decays-100000": lambda: _curve(100_000),
}


def _labels(work: Work) -> Tensor:
    return torch.randint(work.outputs, (len(work.x),), generator=torch.Generator().manual_seed(1))


def _targets_of(work: Work) -> Tensor:
    """What the network shall learn: sinc, or random numbers."""
    if work.x.shape[1:] == (1,):
        return torch.sinc(10 * work.x)
    return torch.randn(len(work.x), *work.out_shape, generator=torch.Generator().manual_seed(1))


# --- laplace-torch --------------------------------------------------------------------------------

JACFN, BACKPACK, ASDL, CURVLINOPS = "JacfnGGN", "BackPackGGN", "AsdlGGN", "CurvlinopsGGN"
#: The package's own class, whose matrices come from torch.func's Jacobians.
BASE = "GGNInterface"


def _backend(name: str, work: Work, **options: Any) -> Any:
    from laplace import curvature
    from laplace.utils import FeatureExtractor

    from jacfn.integrations.laplace import JacfnGGN

    net = copy.deepcopy(work.net)
    if options:
        net = FeatureExtractor(net)
        net.find_last_layer(work.x[:1])
    net.output_size = work.outputs  # as Laplace.fit does
    return (JacfnGGN if name == JACFN else getattr(curvature, name))(net, "classification", **options)


def _question(asked: str, **options: Any) -> Callable[[str], Callable[[Work], Run]]:
    """Ways to the Jacobian or a matrix by each backend."""

    def way(name: str) -> Callable[[Work], Run]:
        def make(work: Work) -> Run:
            backend, labels = _backend(name, work, **options), _labels(work)

            def run() -> Result:
                given = (work.x,) if asked == "jacobians" else (work.x, labels)
                first, second = getattr(backend, asked)(*given)
                return {"first": first.detach(), "second": second.detach()}

            return run

        return make

    return way


def _laplace(name: str, title: str, nets: Sequence[str], backends: Sequence[str], **options: Any) -> Part:
    asked = name.split("-")[-1]
    way = _question(asked, **options)
    return Part(
        name=name,
        title=f"laplace-torch: {title}",
        how=_OF_BACKENDS[asked],
        works=tuple(nets),
        methods=tuple(
            Method(backend, way(backend), ours=backend == JACFN, skip=_skip(backend, bool(options)))
            for backend in (JACFN, *backends)
        ),
        baseline=backends[0],
        unit=JACFN,
        targets=lambda m: _faster(m, backends, JACFN),
    )


def _skip(backend: str, last_layer: bool) -> Callable[[Work], str]:
    """Where torch.func.jacrev of the batch would hold a batch of images for each row."""

    def reason(work: Work) -> str:
        if backend in (BASE, CURVLINOPS) and not last_layer and work.x.ndim > 2:
            return f"jacrev of the batch passes {work.rows} x {len(work.x)} images backward at once"
        return ""

    return reason


_OF_BACKENDS = {
    "jacobians": """\
backend.jacobians(x): (N, K, P) and the outputs, as the predictive distribution needs them for every batch.
CurvlinopsGGN and GGNInterface take torch.func.jacrev of the whole batch; BackPACK and ASDL a backward pass for each
output.""",
    "diag": """\
backend.diag(x, y): the diagonal of JᵀHJ, as Laplace(..., hessian_structure="diag").fit needs it for every batch.
GGNInterface (CurvlinopsGGN takes its code) forms the dense Jacobian.""",
    "full": """\
backend.full(x, y): JᵀHJ, as Laplace(..., hessian_structure="full").fit needs it for every batch. CurvlinopsGGN
multiplies its operator with every unit vector.""",
}


def _faster(
    m: Compared, others: Iterable[str], unit: str, whom: str = "the fastest of the others"
) -> Iterable[list[str]]:
    """jacfn against the fastest of the others."""
    ran = [name for name in others if name in m.seconds]
    if ran and unit in m.seconds:
        fastest = min(ran, key=m.best)
        yield at_least(f"{m.work.name}: time of {whom} / {unit}", 1.0, over(m, fastest, unit))


# --- torch-levenberg-marquardt --------------------------------------------------------------------

STEP, THEIRS = "step with jacfn's hook", "step of the package"


def _step(ours: bool) -> Callable[[Work], Run]:
    """One training step, always from the same weights and damping."""

    def make(work: Work) -> Run:
        from torch_levenberg_marquardt.training import LevenbergMarquardtModule as Theirs

        from jacfn.integrations.torch_levenberg_marquardt import LevenbergMarquardtModule as Ours

        module = (Ours if ours else Theirs)(copy.deepcopy(work.net), solve_method="cholesky")
        start, y = module.flat_params.clone(), _targets_of(work)

        def run() -> Result:
            module.flat_params.copy_(start)
            module.backup_parameters()
            module.damping_strategy.reset()
            _, loss, _, logs = module.training_step(work.x, y)
            return {"loss": loss, "damping": logs["damping"]}

        return run

    return make


LM = Part(
    name="torch-levenberg-marquardt",
    title="torch-levenberg-marquardt: one training step",
    how="""\
module.training_step(x, y) from the same weights, solve_method="cholesky": Jacobian, normal or Gram matrix,
factorisation, trial steps. Compared are the loss and the damping after the step.""",
    works=("sinc", "cnn", "mlp"),
    methods=(
        Method(STEP, _step(True), ours=True),
        Method(THEIRS, _step(False)),
    ),
    baseline=THEIRS,
    unit=STEP,
    targets=lambda m: _faster(m, [THEIRS], STEP),
)

# --- SciPy ----------------------------------------------------------------------------------------

DENSE, FREE = "jacfn least_squares", "jacfn, operator=True"
TWO, THREE, FUNC = "scipy, 2-point", "scipy, 3-point", "scipy, torch.func.jacrev"
JACOBIAN = {TWO: "2-point", THREE: "3-point"}
STEPS = 8
_NO_TOLERANCE = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
#: The same number of iterations for every way.
_LSMR = {"tr_solver": "lsmr", "tr_options": {"maxiter": 30, "atol": 0, "btol": 0, "conlim": 0}}


class Fit:
    """The network of a work, fitted to a surface by SciPy with method="trf"."""

    def __init__(self, work: Work, way: str, **options: Any) -> None:
        self.work, self.way, self.options = work, way, _NO_TOLERANCE | options
        self.y = torch.sin(3 * work.x[:, 0]) * torch.cos(2 * work.x[:, 1])
        self.sizes = [p.numel() for p in work.params.values()]
        self.evaluations = 0  # of all residuals, those for differences too
        self.by_sample = torch.func.vmap(torch.func.jacrev(self._output), (None, 0))

    def run(self, steps: int | None = None) -> Any:
        """SciPy's result after as many evaluations."""
        steps = steps or STEPS
        if self.way in (DENSE, FREE):
            options = self.options | {"operator": self.way == FREE, "in_dims": (None, 0, 0)}
            return least_squares(self.residual, self.work.params, self.work.x, self.y, max_nfev=steps, **options)
        from scipy.optimize import least_squares as theirs

        start = torch.cat([leaf.reshape(-1) for leaf in self.work.params.values()]).numpy()
        jac = JACOBIAN.get(self.way, self.jacobian)
        with torch.no_grad():
            return theirs(self.residuals, start, jac, max_nfev=steps, **self.options)

    def residual(self, params: Any, x: Tensor, y: Tensor) -> Tensor:
        """Of one sample."""
        return self.work.fn(params, x)[0] - y

    def residuals(self, x: Any) -> Any:
        """Of all samples, ``(M,)``."""
        self.evaluations += 1
        return (self.work.batch_fn(self._params(torch.tensor(x)), self.work.x)[:, 0] - self.y).numpy()

    def jacobian(self, x: Any) -> Any:
        """As one would write it with torch.func, ``(M, P)``."""
        return self.by_sample(torch.tensor(x), self.work.x).numpy()

    def _output(self, x: Tensor, sample: Tensor) -> Tensor:
        return self.work.fn(self._params(x), sample)[0]

    def _params(self, x: Tensor) -> dict[str, Tensor]:
        parts = zip(self.work.params.items(), x.split(self.sizes), strict=True)
        return {name: part.view_as(leaf) for (name, leaf), part in parts}


def _fit_by(way: str, steps: int | None = None, **options: Any) -> Method:
    def make(work: Work) -> Run:
        fit = Fit(work, way, **options)
        return lambda: {"cost": torch.tensor(fit.run(steps).cost)}

    return Method(way, make, ours=way in (DENSE, FREE))


FITS = Part(
    name="scipy-least-squares",
    title=f"SciPy: least_squares, {STEPS} evaluations",
    how=f"""\
A network is fitted to sin(3 x) cos(2 y) with method="trf" and stopped after {STEPS} evaluations of the residuals,
differences not counted. The rest of each time is SciPy's own: a singular value decomposition of J for each step.
Compared are the costs at the end. torch.func.jacrev under vmap is written by hand.""",
    works=("fit",),
    methods=tuple(map(_fit_by, (DENSE, FUNC, TWO, THREE))),
    baseline=THREE,
    unit=DENSE,
    targets=lambda m: _faster(m, [TWO, THREE], DENSE, "the faster of SciPy's differences"),
)

FREE_FITS = Part(
    name="scipy-operator",
    title="SciPy: least_squares by LSMR, 4 evaluations",
    how="""\
The same with a wider network: each step by 30 iterations of LSMR on products with J or on the dense matrix.""",
    works=("large",),
    methods=tuple(_fit_by(way, 4, **_LSMR) for way in (FREE, DENSE, FUNC)),
    baseline=FUNC,
    unit=FREE,
    targets=lambda m: _faster(m, [FUNC], FREE),
)


def counts(work: Work) -> str:
    """What each way evaluates for the same fit, and how far its first Jacobian is from torch.func's."""
    exact = Fit(work, FUNC).run(1).jac
    rows = []
    for way in (DENSE, TWO, THREE):
        fit = Fit(work, way)
        result = fit.run()
        evaluations = fit.evaluations or result.nfev
        error = np.abs(Fit(work, way).run(1).jac - exact).max() / np.abs(exact).max()
        rows.append([way, str(evaluations), str(result.njev if way == DENSE else 0), f"{error:.0e}"])
    header = ["fit", "evaluations of the residuals", "passes for J", "error of J"]
    return tables.grid(header, rows)


def peaks(work: Work) -> str:
    """By how much the process grows over a fit by LSMR."""
    rows = []
    for way in (FREE, DENSE, FUNC):
        _, growth, _ = peak_growth(lambda way=way: Fit(work, way, **_LSMR).run(4))
        rows.append([way, tables.significant(max(growth, 0) / 2**20)])
    dense = work.rows * work.columns * 8 / 2**20
    return tables.grid(["large", f"growth, MiB (J has {dense:.0f})"], rows)


TRUTH = (3.0, 0.4, 1.5, 2.5, 0.2)
START = (1.0, 0.2, 1.0, 3.0, 0.0)
CURVE, POINTS = "jacfn curve_fit", "jacfn curve_fit, in_dims=0"
NUMPY, TORCH = "scipy, f in NumPy", "scipy, f in torch"


def decays(x: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Two decays and a background, in NumPy or torch."""
    exp = torch.exp if isinstance(x, Tensor) else np.exp
    return a * exp(-b * x) + c * exp(-d * x) + e


def _curve_fit(way: str) -> Callable[[Work], Run]:
    def make(work: Work) -> Run:
        import scipy.optimize

        noise = torch.randn(len(work.x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y = decays(work.x, *TRUTH) + 0.01 * noise
        arrays = work.x.numpy(), y.numpy()

        def in_torch(x: Any, *p: float) -> Any:
            return decays(work.x, *p).numpy()

        def run() -> Result:
            if way in (CURVE, POINTS):
                found, covariance = curve_fit(decays, work.x, y, START, in_dims=None if way == CURVE else 0)
            else:
                found, covariance = scipy.optimize.curve_fit(decays if way == NUMPY else in_torch, *arrays, START)
            return {"parameters": torch.tensor(found), "covariance": torch.tensor(covariance)}

        return run

    return make


CURVES = Part(
    name="scipy-curve-fit",
    title="SciPy: curve_fit",
    how="""\
The sum of two decays and a constant, 5 parameters, fitted from the same start to convergence with SciPy's tolerances.
Without jacfn the Jacobian comes from differences.""",
    works=("decays-200", "decays-100000"),
    methods=(
        Method(CURVE, _curve_fit(CURVE), ours=True),
        Method(POINTS, _curve_fit(POINTS), ours=True),
        Method(NUMPY, _curve_fit(NUMPY)),
        Method(TORCH, _curve_fit(TORCH)),
    ),
    baseline=NUMPY,
    unit=CURVE,
    targets=lambda m: (),  # differences of a formula are cheap
)

# --- the command line -----------------------------------------------------------------------------

PARTS = {
    part.name: part
    for part in (
        FITS,
        FREE_FITS,
        CURVES,
        LM,
        _laplace("laplace-jacobians", "Jacobians", ("mlp", "cnn"), (BACKPACK, ASDL, CURVLINOPS)),
        _laplace("laplace-diag", "diagonal GGN of all weights", ("mlp", "cnn"), (BACKPACK, ASDL, BASE)),
        _laplace("laplace-full", "full GGN of all weights", ("small",), (BASE, CURVLINOPS)),
        _laplace(
            "laplace-last-full", "full GGN of the last layer", ("mlp", "cnn"), (BASE, CURVLINOPS), last_layer=True
        ),
    )
}

#: What is printed below a part's table.
EXTRAS = {FITS.name: (counts,), FREE_FITS.name: (peaks,)}


def run(part: Part, seconds: float) -> Iterator[str]:
    """The part's section and what stands below it; one line where its package is not installed."""
    package = {"laplace": "laplace", "torch": "torch_levenberg_marquardt"}.get(part.name.split("-")[0], "scipy")
    if not find_spec(package):
        yield f"{part.title}: {package} is not installed (docs/integrations.rst)"
        return
    yield section(part, [compare(part, build(work), seconds) for work in part.works])
    yield from (extra(build(work)) for work in part.works for extra in EXTRAS.get(part.name, ()))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integrations", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", default=list(PARTS), type=lambda text: text.split(","), metavar="A,B", help=f"of {','.join(PARTS)}")
    add("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    add("--seconds", type=float, default=0.5, help="least time for each median (default 0.5)")
    add("--save", type=Path, metavar="DIR", help="write integrations.txt there")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return options


def build(name: str) -> Work:
    """The named work; always the same weights and data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WORKS[name]()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    texts = [tables.machine(options.threads), HOW]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"laplace|asdl|backpack|pytorch_lightning|lightning|torch_lev|torch\.nn"
        )
        for part in (PARTS[name] for name in options.parts):
            texts += run(part, options.seconds)
    text = "\n\n".join(texts)
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "integrations.txt", text)


if __name__ == "__main__":
    main()
