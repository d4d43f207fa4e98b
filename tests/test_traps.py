"""The trap table: jacfn is right or raises, and PyTorch is right where the documentation says so."""

from __future__ import annotations

import pytest
from traps.functions import CASES
from traps.paths import PATHS
from traps.verdicts import NAN, RAISES, RIGHT, VERSION, WRONG, by, judged, kept, kind, verdict

from jacfn import JacfnError
from jacfn._exact.functions import NoForwardError
from jacfn.second_order.carrier import UnseenError

TABLE = kept()
ROWS = TABLE["functions"]
AGAIN = "python -m benchmarks.traps --save docs/traps.json"
SAME_TORCH = TABLE["torch"] == VERSION

# Of jacfn's paths those that are run often; the others differ from them in how samples are mapped.
OFTEN = {
    1: ("jacfn.jac_rev", "jacfn.jac_fwd", "jacfn.jac_rev, in_dims"),
    2: ("jacfn.hessian, in_dims", "jacfn.hessian_diag", "jacfn.laplacian, in_dims"),
    3: ("grad of jacfn.laplacian, in_dims", "jvp of jacfn.laplacian"),
}

# That say what is missing: jacfn's, or PyTorch's.
ERRORS = {kind.__name__ for kind in (JacfnError, NoForwardError, UnseenError, RuntimeError, NotImplementedError)}


def check(name: str, path: str, text: str) -> None:
    """A verdict on one of jacfn's paths."""
    assert kind(text) != WRONG, f"{path} of {name} is silently {text}"
    if kind(text) == RAISES:
        assert text.split(": ")[1] in ERRORS, f"{path} of {name} {text}"
    if SAME_TORCH:
        before = ROWS[name].get(path, RIGHT)
        assert kind(text) == kind(before), f"{path} of {name}: {text}; the table says {before}: {AGAIN}"


@pytest.mark.parametrize("order", OFTEN)
@pytest.mark.parametrize("name", CASES)
def test_jacfn_is_right_or_raises(name: str, order: int) -> None:
    for path in OFTEN[order]:
        check(name, path, verdict(CASES[name], PATHS[path]))


@pytest.mark.skipif(not SAME_TORCH, reason=f"the table is of torch {TABLE['torch']}")
@pytest.mark.parametrize("name", CASES)
def test_covered_by_rules_as_the_table_says(name: str) -> None:
    assert kind(by(CASES[name])) == kind(ROWS[name]["by"]), AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_path(name: str) -> None:
    row = judged(CASES[name])
    for path in PATHS.values():
        text = row.get(path.name, RIGHT)
        if path.ours:
            check(name, path.name, text)
        elif SAME_TORCH:
            before = ROWS[name].get(path.name, RIGHT)
            assert kind(text) == kind(before), f"{path.name} of {name}: {text}; the table says {before}: {AGAIN}"


def test_the_table_has_these_functions_and_paths() -> None:
    assert list(ROWS) == list(CASES), AGAIN
    assert [ROWS[name]["group"] for name in CASES] == [case.group for case in CASES.values()], AGAIN
    assert TABLE["paths"] == list(PATHS), AGAIN
    for row in ROWS.values():
        assert set(row) - {"group", "by"} <= set(PATHS)
        assert {kind(text) for name, text in row.items() if name in PATHS} <= {WRONG, NAN, RAISES}


def test_the_traps_are_there() -> None:
    """Were all right, the table would be empty for a wrong reason."""
    wrong = {path: [n for n, row in ROWS.items() if kind(row.get(path, RIGHT)) == WRONG] for path in PATHS}
    assert "F.layer_norm" in wrong["jvp of jvp"]
    assert "torch.linalg.slogdet" in wrong["grad of trace of hessian"]
    assert len(CASES) >= 110
