"""The benchmarks run: every method and every peer that is installed, on networks of a few weights."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import profile, quasilinear
from benchmarks.floors import outer_products
from benchmarks.measure import difference, measure
from benchmarks.methods import BASELINE, OURS, named
from benchmarks.peers import BACKPACK, OPACUS, PYTORCH_JACOBIAN
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
