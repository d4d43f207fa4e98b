"""The demonstration, ``python -m jacfn``: run as the command line runs it, and its arithmetic."""

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from jacfn.__main__ import main
from jacfn._demo.fit import damped_step, fit
from jacfn._demo.problems import load

METHODS = ["jac_rev", "jac_fwd", "jac_quasilinear", "autograd.functional"]
NUMBER = r"(\d[\d.e+-]*)"


@dataclass
class Ran:
    """What a run printed, and the folder in which it left its picture."""

    text: str
    picture: bytes

    def table(self):
        """Method -> (rows, columns, largest difference from the reference)."""
        found = re.findall(r"([a-z_.]+)[ |]+(\d+) x (\d+)[ |]+(\S+) ", self.text)
        return {name: (int(rows), int(columns), gap) for name, rows, columns, gap in found}

    def losses(self):
        """The losses printed, from the first step to the last."""
        return [float(loss) for loss in re.findall(rf"^step .* loss {NUMBER} ", self.text, re.M)]

    def scores(self):
        """Name -> held-out score, from the closing line."""
        (line,) = re.findall(r"^held-out \w+: (.*)$", self.text, re.M)
        return {name: float(value) for name, value in re.findall(rf"([a-z][a-z ]+) {NUMBER}", line)}


def run(out, *arguments):
    """Run the demonstration with its output going to a pipe that knows ASCII only."""
    raw = io.BytesIO()
    pipe = io.TextIOWrapper(raw, encoding="ascii")
    with contextlib.redirect_stdout(pipe), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jacfn._demo.compare.RUNS", 1)  # what is timed here nobody reads
        patch.setattr("jacfn._demo.compare.SAMPLES", 8)
        assert main(["--device", "cpu", "--out", str(out), *arguments]) == 0
    pipe.flush()
    return Ran(raw.getvalue().decode("ascii"), out.read_bytes())


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    return run(tmp_path_factory.mktemp("diabetes") / "picture.png")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("digits") / "picture.png", "--data", "digits", "--steps", "2")


@pytest.mark.parametrize(("data", "shape"), [("diabetes", (8, 897)), ("digits", (80, 920))])
def test_the_four_methods_agree(data, shape, request):
    table = request.getfixturevalue(data).table()
    assert list(table) == METHODS
    assert {line[:2] for line in table.values()} == {shape}
    *gaps, reference = (gap for _, _, gap in table.values())
    assert reference == "-"
    assert all(float(gap) < 1e-10 for gap in gaps)


@pytest.mark.parametrize("data", ["diabetes", "digits"])
def test_the_loss_falls_and_the_picture_is_saved(data, request):
    ran = request.getfixturevalue(data)
    losses = ran.losses()
    assert losses[-1] < 0.8 * losses[0]
    assert ran.picture.startswith(b"\x89PNG\r\n")
    assert ran.picture.endswith(b"IEND\xaeB`\x82")


def test_output_to_a_pipe_has_no_control_characters(diabetes):
    assert "\x1b" not in diabetes.text
    assert "\r" not in diabetes.text


def test_the_fit_of_the_diabetes_data_beats_the_mean_and_equals_a_linear_model(diabetes):
    scores = diabetes.scores()
    assert scores["network"] < 0.85 * scores["training mean"]
    assert scores["network"] < 1.03 * scores["ridge regression"]


def test_the_fit_of_the_digits_beats_the_most_frequent_digit(digits):
    scores = digits.scores()
    assert scores["network"] > 2 * scores["training mean"]


def test_the_seed_decides_the_fit_and_nothing_else_does():
    def losses(seed):
        state = torch.get_rng_state()
        steps = fit(load("diabetes", seed, "cpu"), 2, "64MiB", report=lambda step: None).steps
        assert torch.equal(state, torch.get_rng_state())
        return [step.loss for step in steps]

    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "iris"], "invalid choice: 'iris'"),
        (["--memory", "256 acres"], "argument --memory: .*'256 acres'"),
        (["--memory", "0"], "argument --memory: .*positive"),
        (["--memory", "1KiB"], "too small"),
        (["--steps", "-1"], "argument --steps: must be a whole number"),
        (["--steps", "1.5"], "argument --steps: must be a whole number"),
        (["--seed", "x"], "argument --seed: must be a whole number"),
        (["--device", "abacus"], "argument --device: must be auto, cpu or cuda"),
        (["--device", "cuda"], "argument --device: this machine has no CUDA device"),
        (["--out", "missing/picture.png"], "argument --out: the folder 'missing' does not exist"),
        (["--out", "picture.jpg"], "argument --out: must name a .png file"),
        (["--out", "folder.png"], "argument --out: 'folder.png' is a folder"),
    ],
)
def test_bad_arguments_end_with_code_2_and_leave_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_help_and_a_clear_message_without_the_extra():
    block = "import sys; sys.modules.update(dict.fromkeys(('rich', 'sklearn', 'matplotlib')))"
    script = f"{block}; from jacfn.__main__ import main; main(sys.argv[1:])"

    def without_extra(*arguments):
        return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)

    shown = without_extra("--help")
    assert shown.returncode == 0, shown.stderr
    assert "--memory SIZE" in shown.stdout
    refused = without_extra()
    assert refused.returncode == 1
    assert 'needs rich, sklearn, matplotlib: pip install -c constraints.txt ".[demo]"' in refused.stderr


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_a_damped_step_solves_the_stacked_least_squares_problem(shape):
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(shape, dtype=torch.float64, generator=generator)
    residual = torch.randn(shape[0], dtype=torch.float64, generator=generator)
    shift = 0.3
    stacked = torch.cat([J, shift**0.5 * torch.eye(shape[1], dtype=torch.float64)])
    right = torch.cat([-residual, torch.zeros(shape[1], dtype=torch.float64)])
    wanted = torch.linalg.lstsq(stacked, right[:, None]).solution[:, 0]
    torch.testing.assert_close(damped_step(J, J.T @ residual, shift), wanted)
