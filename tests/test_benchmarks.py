"""The benchmarks run: every method and every peer that is installed, on networks of a few weights."""

from __future__ import annotations

import gc
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import causes, least_squares, operator, profile, quasilinear, second_order, works
from benchmarks.fits import budget as fit_budget
from benchmarks.fits import counts, curves, in_jax, pinn, plots, problems, race, steps
from benchmarks.floors import outer_products
from benchmarks.measure import difference, measure
from benchmarks.methods import BASELINE, OURS, named
from benchmarks.operators import budget, scaling
from benchmarks.operators.compare import compare
from benchmarks.peers import BACKPACK, OPACUS, PYTORCH_JACOBIAN
from benchmarks.seconds import budget as hessian_budget
from benchmarks.seconds import laplacians, memory, tracing
from benchmarks.seconds import works as fields
from benchmarks.works import WORKS, TokenTransformer, Work, cnn_net, conv3d_net, make_work, mlp_net, resnet

QUICK = ["--no-compile", "--seconds", "0.001", "--patience", "0"]


def tiny(name: str) -> Work:
    """The network of this name with few samples and few weights."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    net, x = {
        "mlp": lambda: (mlp_net(3, 4, 2), torch.randn(5, 3)),
        "cnn": lambda: (cnn_net(2, 3), image),
        "resnet": lambda: (resnet(2, 3), image),
        "transformer": lambda: (TokenTransformer(7, 8, 1, 3), torch.randint(7, (2, 4))),
        "conv3d": lambda: (conv3d_net(), torch.randn(3, 1, 6, 6, 6)),
    }[name]()
    return make_work(name, name, net, x)


def test_quasilinear_prints_a_table_and_targets_and_saves_them(tmp_path, capsys):
    options = quasilinear.parse([*QUICK, "--save", str(tmp_path)])
    (measured,) = quasilinear.run([tiny("mlp")], options)
    assert {OURS, BASELINE, PYTORCH_JACOBIAN.name, *quasilinear.LOOPS} <= measured.seconds.keys()
    saved = (tmp_path / "quasilinear.txt").read_text()
    assert saved.strip() in capsys.readouterr().out
    for part in ("ratio", "milliseconds", "floor, outer products", f"mlp: time of {BASELINE} / {OURS}"):
        assert part in saved
    assert (tmp_path / "quasilinear.png").stat().st_size


def peer(method, package, *works):
    """Cases of one peer, on the works where it is right."""
    absent = pytest.mark.skipif(not find_spec(package), reason=f"needs {package} (benchmarks/peers.txt)")
    return [pytest.param(method, work, marks=absent, id=f"{package}-{work}") for work in works]


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    ("method", "work"),
    [
        *peer(BACKPACK, "backpack", "mlp", "cnn", "resnet", "conv3d"),
        *peer(OPACUS, "opacus", "mlp", "cnn", "transformer", "conv3d"),
        *peer(PYTORCH_JACOBIAN, "torch", "mlp", "cnn", "conv3d"),
    ],
)
def test_peers_agree_with_the_baseline(method, work):
    work = tiny(work)
    with sdpa_kernel(SDPBackend.MATH):
        assert difference(method.make(work)(), named(BASELINE)[0].make(work)()) < 1e-4


def test_a_method_that_fails_is_noted_and_the_run_goes_on():
    methods = [PYTORCH_JACOBIAN, *named(BASELINE)]
    measured = measure(tiny("resnet"), 1e-3, 0, methods, tolerant=True)
    assert measured.seconds.keys() == {BASELINE}
    assert "immediate children" in measured.notes[PYTORCH_JACOBIAN.name]
    with pytest.raises(NotImplementedError, match="immediate children"):
        measure(tiny("resnet"), 1e-3, 0, methods)


def test_the_floor_counts_the_products_of_linear_layers_and_convolutions():
    assert outer_products(tiny("mlp")) == 2 * 5 * 2 * (3 * 4 + 4 * 2)  # 2 FLOPs, samples, outputs, weights
    convolutions = 3 * 2 * 9 * 8 * 8 + 2 * 3 * 9 * 4 * 4
    assert outer_products(tiny("cnn")) == 2 * 2 * 10 * (convolutions + 3 * 10)


def test_an_unknown_network_is_refused(capsys):
    with pytest.raises(SystemExit):
        quasilinear.parse(["--works", "mlp,moon"])
    assert "no network 'moon'" in capsys.readouterr().err


def test_profile_prints_operations_and_page_faults(monkeypatch, capsys):
    monkeypatch.setitem(WORKS, "mlp", lambda: tiny("mlp"))
    profile.main(["mlp", "--rows", "3", "--threads", str(torch.get_num_threads())])
    out = capsys.readouterr().out
    assert "aten::" in out
    assert "page faults" in out


def test_pinn_says_how_near_it_came(monkeypatch):
    monkeypatch.setattr(pinn, "MOST", 2)
    text = pinn.section(list(pinn.measure(1)))
    assert "jacfn (geodesic)" in text
    assert "missed" in text


def test_causes_has_a_row_for_each_stage(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(WORKS, "mlp", lambda: tiny("mlp"))
    monkeypatch.setattr(problems, "sinc", lambda make=problems.sinc: make(samples=2000))
    threads = ["--threads", str(torch.get_num_threads())]
    causes.main(["--works", "mlp", "--seconds", "0.001", *threads, "--save", str(tmp_path)])
    out = capsys.readouterr().out
    for stage in ("forward, K backward", "rows", "large product", "normal matrix", "rest"):
        assert f"\n{stage} " in out
    assert (tmp_path / "causes.txt").exists()


# --- the operator ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_works(monkeypatch):
    """Every network that has a tiny form has it in place of its own."""
    for name in ("mlp", "cnn", "transformer"):
        monkeypatch.setitem(works.WORKS, name, lambda name=name: tiny(name))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_operator_prints_a_section_for_each_timed_part_and_saves_them(tiny_works, tmp_path, capsys):
    threads = str(torch.get_num_threads())
    timed = ",".join(operator.TIMED)
    quick = ["--works", "mlp", "--seconds", "0.001", "--threads", threads, "--jax", str(tmp_path / "nowhere")]
    operator.main(["--parts", f"{timed},jax", *quick, "--save", str(tmp_path)])
    saved = (tmp_path / "operator.txt").read_text()
    assert saved.strip() in capsys.readouterr().out
    for part in operator.TIMED.values():
        assert part.title in saved
        assert f"{part.unit} fails" not in saved
    for line in ("mlp: time of jacfn materialize(out=) / warm fill", "python -m benchmarks.jax_env makes them"):
        assert line in saved
    assert (tmp_path / "operator.png").stat().st_size


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("work", ["cnn", "transformer"])
@pytest.mark.parametrize("part", ["flat", "ntk", "norms"])
def test_all_ways_of_a_part_agree(part, work):
    part = operator.TIMED[part]
    measured = compare(part, tiny(work), 1e-4)
    right = {method.name for method in part.methods if not method.skip(measured.work)}
    if work == "transformer":
        right -= {name for name in right if name.startswith("BackPACK")}  # it has no rule for attention
    assert right <= measured.seconds.keys()
    assert max(measured.differences.values()) < 1e-5


@pytest.mark.parametrize("way", scaling.WAYS)
def test_a_point_of_the_scaling_curve_has_a_time_and_a_peak(way):
    measured = scaling.child(way, 3, [4, 5, 2], torch.get_num_threads(), 1e-3)
    assert measured["seconds"] > 0
    assert measured["difference"] < 1e-5


def test_the_scaling_curve_is_drawn_and_its_targets_are_set(tmp_path):
    def point(samples, width, seconds):
        figures = {scaling.OURS: {"seconds": seconds, "peak": 2**20}, scaling.THEIRS: {"error": "no memory"}}
        return scaling.Point(f"{samples} {width}", samples, (3, width, width, 2), figures)

    curves = [[point(n, 4, n**2) for n in (2, 4, 8)], [point(2, width, width) for width in (4, 8)]]
    text = scaling.section(curves)
    assert "8 4, tutorial, Jacobian contraction: no memory" in text
    assert "time at N=8 / N=2" in text
    scaling.plot(curves, tmp_path / "ntk.png")
    assert (tmp_path / "ntk.png").stat().st_size


@pytest.mark.parametrize("operation", budget.OPERATIONS)
@pytest.mark.parametrize("method", budget.METHODS)
def test_a_budget_is_measured_for_every_method_and_operation(method, operation, monkeypatch):
    monkeypatch.setitem(budget.LARGE, "tiny", (lambda: tiny("mlp"),) * 2)
    asked = {"work": "tiny", "method": method, "operation": operation, "budget": "64MiB"}
    threads = torch.get_num_threads()
    row = budget.line(budget.child(**asked, threads=threads), **asked, threads=threads)
    assert row[budget.HEADER.index("inside")] == "yes"
    assert "1 of 1" in budget.section([row], "64MiB")


def test_a_failure_in_a_child_is_in_the_table():
    row = budget.line({"error": "it broke"}, work="mlp", method="rev", operation="mv", budget="1MiB")
    assert row[0] == "mlp: it broke"
    assert "0 of 1" in budget.section([row], "1MiB")


# --- least squares --------------------------------------------------------------------------------


@pytest.fixture
def tiny_sinc():
    return problems.sinc(samples=200)


def test_a_step_by_hand_and_by_jacfn_is_the_same(tiny_sinc, monkeypatch):
    measured = steps.measure(steps.SINC, tiny_sinc.work, 1e-4)
    assert {steps.OURS, steps.DEFAULT, steps.BY_HAND} <= measured.seconds.keys()
    text = steps.section(steps.SINC, measured)
    assert f"sinc: time of {steps.CHOLESKY} / {steps.OURS}" in text


def test_the_race_has_a_table_targets_and_a_picture(tiny_sinc, tmp_path):
    ways = {name: race.WAYS[name] for name in (race.OURS, "scipy lm (torch.func Jacobian)", "torch Adam")}
    ways["broken"] = lambda problem, record: 1 / 0
    raced, failed = race.race(tiny_sinc, 0.3, ways)
    assert raced.keys() == ways.keys() - {"broken"}
    assert "division by zero" in failed["broken"]
    text = race.section(tiny_sinc, raced, failed, 0.3)
    assert "time of torch Adam to its lowest loss / jacfn to that, warm" in text
    plots.plot(raced, "a title", tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size


def test_a_way_without_a_step_in_time_is_a_row_of_the_race(tiny_sinc, tmp_path, monkeypatch):
    monkeypatch.setattr(race, "FIRST", 1)

    def slow(problem, record):
        record(problem.start)  # an evaluation, but no step
        time.sleep(10)

    begin = time.perf_counter()
    raced, failed = race.race(tiny_sinc, 0.1, {"torch Adam": race.WAYS["torch Adam"], "slow": slow})
    assert time.perf_counter() - begin < 5
    assert not failed
    assert not raced["slow"].warm.stepped
    text = race.section(tiny_sinc, raced, failed, 0.1)
    assert "slow: no step within 1 s" in text
    assert "time of slow" not in text
    plots.plot(raced, "a title", tmp_path / "race.png")


def test_a_race_from_several_starts_has_a_row_for_each():
    def raced(*seconds):
        traces = [race.Trace(np.array([0.0, each]), np.array([1.0, 0.1]), 2) for each in seconds]
        return {name: race.Raced(trace, trace) for name, trace in zip(race.PAIR, traces, strict=False)}

    text = race.seeds_section({3: raced(1.0, 4.0), 4: raced(1.0, 2.0), 5: raced(1.0)}, 8)
    ratios = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line[:1].isdigit()}
    assert ratios == {"3": "4.00", "4": "2.00", "5": "-"}
    assert "lowest ratio over 2 seeds" in text
    assert "2.00x  met" in text


def test_the_race_of_least_squares_takes_seeds_and_few_samples(tmp_path, capsys):
    short = ["--samples", "100", "--few", "50", "--patience", "0.2", "--seeds", "2", "--jax", str(tmp_path)]
    ways = ["--ways", f"{race.OURS},{race.CHOLESKY},torch Adam"]
    least_squares.main(["--parts", "race,few", "--threads", str(torch.get_num_threads()), *short, *ways])
    printed = capsys.readouterr().out
    assert "The race from 2 starts" in printed
    assert "50 samples" in printed


@pytest.mark.parametrize("way", race.WAYS)
def test_every_way_of_the_race_lowers_the_loss(way, tiny_sinc):
    package = {"torch-levenberg-marquardt": "torch_levenberg_marquardt", "pypose": "pypose"}
    for name, module in package.items():
        if way.startswith(name) and not find_spec(module):
            pytest.skip(f"needs {module} (benchmarks/peers.txt)")
    trace = race.run(tiny_sinc, race.WAYS[way], 0.5)
    assert trace.lowest < tiny_sinc.loss(tiny_sinc.start)
    assert (np.diff(trace.losses) <= 0).all()


def test_a_trace_knows_when_a_loss_was_reached(tiny_sinc):
    trace = race.Trace(np.array([0.0, 1.0, 2.0]), np.array([3.0, 2.0, 1.0]), 3)
    assert trace.until(2.5) == 1.0
    assert trace.until(0.5) == float("inf")
    assert trace.lowest == 1.0


def test_without_an_environment_the_solvers_in_jax_are_left_out(tiny_sinc, tmp_path):
    raced, failed = in_jax.raced(tiny_sinc, 1, tmp_path, 1)
    assert not raced
    assert "python -m benchmarks.jax_env makes it" in failed["JAX"]


def test_curves_are_fitted_by_all_ways_alike(tmp_path):
    made = curves.make(6)
    timed = dict(curves.measure(made, tmp_path, 1, some=3))
    assert {*curves.AT_ONCE, *curves.LOOPS} <= timed.keys()
    assert not any(result.wrong for result in timed.values())
    assert "3 curves, scaled" in curves.section(made, timed)


def test_a_fit_in_a_budget_is_measured():
    threads = torch.get_num_threads()
    measured = fit_budget.child(64, [3, 8, 8, 1], "cg", "256MiB", threads)
    assert measured["costs"][1] < measured["costs"][0]
    text = fit_budget.section({"cg": measured, "lsmr": {"error": "it broke"}}, "256MiB")
    assert "it broke" in text
    assert "met" in text
    assert "missed" in text


def test_evaluations_are_counted_and_summed_up():
    some = [problem for problem in counts.problems() if problem.name == "Rosenbrock"]
    rows = counts.measure(some)
    assert all(counted.right for *_, ways in rows for counted in ways.values())
    assert all(counted.digits == counts.DIGITS for *_, ways in rows for counted in ways.values())
    assert f"of {len(rows)}" in counts.section(rows)


def test_digits_are_those_of_the_nearest_known_cost():
    named = {problem.name: problem for problem in counts.problems()}
    high = named["Freudenstein-Roth"].costs[1]
    assert counts.digits(named["Freudenstein-Roth"], high * (1 + 1e-7)) == pytest.approx(7)
    assert counts.digits(named["Freudenstein-Roth"], high) == counts.DIGITS
    start = float(named["Rosenbrock"].residuals(named["Rosenbrock"].start()).square().sum())
    assert counts.digits(named["Rosenbrock"], 1e-8 * start) == pytest.approx(8)
    assert counts.digits(named["Rosenbrock"], 2 * start) == 0


def test_least_squares_prints_its_parts_and_saves_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counts, "problems", list)
    threads = str(torch.get_num_threads())
    least_squares.main(["--parts", "counts", "--threads", threads, "--save", str(tmp_path)])
    assert (tmp_path / "least-squares.txt").read_text().strip() in capsys.readouterr().out


# --- second order ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_fields(monkeypatch):
    """Every work of the second order in a tiny form, on one thread: others would only wait for one another."""

    def make(name):
        torch.manual_seed(0)
        if name == "weights":
            return fields.Loss(**vars(make_work(name, name, fields.tanh_net(3, 5, 4), torch.randn(6, 3))))
        net, x = {
            "mlp": lambda: (fields.tanh_net(4, 6, 5), torch.randn(5, 4)),
            "transformer": lambda: (fields.Encoder(8, 1), torch.randn(2, 3, 3)),
            "wave": lambda: (fields.WaveFunction(4, 6, 3, 1), torch.randn(3, 4, 3)),
        }[name.rstrip("0123456789")]()
        return fields.field(name, name, net, x)

    for name in fields.WORKS:
        monkeypatch.setitem(fields.WORKS, name, lambda name=name: make(name))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # what there is before: looking it through after each way would take most of the time
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")  # of functorch
def test_second_order_prints_a_section_for_each_timed_part_and_saves_them(tiny_fields, tmp_path, capsys):
    quick = ["--works", "mlp30,weights", "--seconds", "0.0001", "--threads", str(torch.get_num_threads())]
    asked = ["--parts", "mlp,training,diagonal,jax", "--jax", str(tmp_path / "nowhere"), "--save", str(tmp_path)]
    second_order.main([*quick, *asked])
    saved = (tmp_path / "second-order.txt").read_text()
    assert saved.strip() in capsys.readouterr().out
    for part in ("mlp", "training", "diagonal"):
        assert second_order.TIMED[part].title in saved
    assert "fails" not in saved
    for line in (
        "mlp30: time of vmap(trace of hessian) / jacfn.laplacian",
        "mlp30: time of double backward loop, backward() / jacfn.laplacian, func.grad",
        "weights: time of",
        "python -m benchmarks.jax_env makes it",
    ):
        assert line in saved
    assert (tmp_path / "second-order.png").stat().st_size


@pytest.mark.filterwarnings("ignore")  # of functorch
@pytest.mark.parametrize("part", ["transformer", "wavefunction"])
def test_all_ways_to_a_laplacian_agree_or_are_known_to_be_wrong(tiny_fields, part):
    part = second_order.TIMED[part]
    work = fields.build(part.works[0])
    measured = compare(part, work, 1e-4)
    right = {method.name for method in part.methods} - {laplacians.JET.name}  # it has few operations
    if work.name == "wave64":  # vmapped twice, the forward derivative of slogdet takes one sample for another
        right -= {laplacians.HESSIAN, "jvp of grad, vmap inside"}
    assert right <= measured.seconds.keys()
    assert all(measured.differences[name] < 1e-4 for name in right)
    (target,) = part.targets(measured)
    assert "(the best) / jacfn.laplacian" in target[0]


@pytest.mark.filterwarnings("ignore")  # of functorch
def test_peaks_of_second_derivatives_are_measured(tiny_fields):
    peaks = {}
    for place, (peer, _) in memory.LEAST.items():
        ways = [peer, next(way.name for way in memory.PARTS[place[0]].methods if way.ours)]
        peaks[place] = {way: memory.child(*place, way, torch.get_num_threads()) for way in ways}
        assert all(figures["peak"] >= 0 for figures in peaks[place].values())
    peaks["mlp", "mlp30"]["by hand"] = {"error": "it broke"}
    text = memory.section(peaks)
    assert "by hand: it broke" in text
    assert "training, mlp30: peak of double backward loop, backward() / jacfn.laplacian, backward()" in text


@pytest.mark.parametrize("operation", hessian_budget.OPERATIONS)
def test_parts_of_a_hessian_are_measured_in_a_budget(tiny_fields, operation):
    row = hessian_budget.line(hessian_budget.child(operation, "64MiB", torch.get_num_threads()), operation, "64MiB")
    assert row[hessian_budget.HEADER.index("inside")] == "yes"
    assert "1 of 1" in hessian_budget.section([row], "64MiB")


def test_tracing_is_timed(monkeypatch):
    monkeypatch.setattr(tracing, "WIDTH", 8)
    monkeypatch.setattr(tracing, "TOKENS", 2)
    text = tracing.section(tracing.child(torch.get_num_threads()))
    for line in (tracing.FIRST, tracing.OTHER_AGAIN, "< 2"):
        assert line in text
    assert "failed: it broke" in tracing.section({"error": "it broke"})
