"""The benchmark of the adapters runs: every part, with the packages that are installed, on a few weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import integrations
from benchmarks.works import cnn_net, make_work, mlp_net


def tiny(name):
    """The network of this name with few samples and few weights."""
    double = torch.float64
    return {
        "mlp": lambda: make_work(name, name, mlp_net(3, 5, 4), torch.randn(6, 3)),
        "small": lambda: make_work(name, name, mlp_net(3, 5, 4), torch.randn(6, 3)),
        "cnn": lambda: make_work(name, name, cnn_net(2, 3), torch.randn(2, 3, 8, 8)),
        "sinc": lambda: integrations._sinc(40),
        "fit": lambda: make_work(
            name, name, mlp_net(2, 3, 1, activation=nn.Tanh).to(double), torch.rand(40, 2).to(double)
        ),
        "large": lambda: make_work(
            name, name, mlp_net(2, 4, 1, activation=nn.Tanh).to(double), torch.rand(40, 2).to(double)
        ),
        "decays-200": lambda: integrations._curve(50),
        "decays-100000": lambda: integrations._curve(60),
    }[name]


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("part", integrations.PARTS)
def test_a_part_prints_its_table_and_saves_it(part, monkeypatch, tmp_path, capsys):
    for name in integrations.PARTS[part].works:
        monkeypatch.setitem(integrations.WORKS, name, tiny(name))
    monkeypatch.setattr(integrations, "STEPS", 2)
    threads = str(torch.get_num_threads())
    integrations.main(["--parts", part, "--seconds", "0.001", "--threads", threads, "--save", str(tmp_path)])
    saved = (tmp_path / "integrations.txt").read_text()
    assert saved.strip() in capsys.readouterr().out
    assert integrations.PARTS[part].title in saved
    assert f"{integrations.PARTS[part].unit} fails" not in saved


def test_differences_evaluate_more_and_are_less_exact():
    text = integrations.counts(tiny("fit")())
    ours, two, three = (line.split() for line in text.splitlines()[2:])
    assert int(ours[-3]) < int(two[-3]) < int(three[-3])
    assert float(ours[-1]) < 1e-12 < float(two[-1])


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        integrations.parse(["--parts", "moon"])
    assert "no part 'moon'" in capsys.readouterr().err
