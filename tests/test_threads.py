"""The switch for threads: what is in force when, whatever the order in which blocks of several threads end."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - brings a BLAS of its own
from threadpoolctl import threadpool_info, threadpool_limits
from typer.testing import CliRunner

import osscar_opt
from osscar_opt import Problem
from osscar_opt.cli import app
from osscar_opt.errors import InputError
from osscar_opt.linalg import threads as module
from osscar_opt.linalg.threads import at_most, available_cores, in_force
from osscar_opt.solvers import Proposal, Solver
from osscar_opt.solvers._worker import one_blas_thread
from osscar_opt.solvers.random import Random


def pools() -> list[dict[str, Any]]:
    """The pools of this process, but for those that were built without threads (scs brings such a BLAS)."""
    return [pool for pool in threadpool_info() if pool.get("threading_layer") != "disabled"]


def blas() -> set[int]:
    """Threads of the BLAS pools."""
    return {pool["num_threads"] for pool in pools() if pool["user_api"] == "blas"}


pytestmark = pytest.mark.skipif(len(blas()) != 1, reason="this BLAS has no pool that can be limited")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Every test begins and ends with what BLAS has by itself."""
    own = blas()
    yield
    assert blas() == own
    assert in_force() is None
    assert not module._switch._own


def in_thread(work: Callable[[], Any]) -> Any:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(work()))
    thread.start()
    thread.join(60)
    return seen[0]


def command(code: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------------ one thread


def test_a_block_limits_every_pool_and_gives_back_what_was() -> None:
    own = blas()
    with osscar_opt.threads(3):
        assert blas() == {3}
        with osscar_opt.threads(2):
            assert blas() == {2}
            assert in_thread(blas) == {2}, "the pool is that of the process"
        assert blas() == {3}
        with osscar_opt.threads(None):
            assert blas() == own
        assert blas() == {3}
    assert blas() == own


def test_as_a_setting_it_lasts() -> None:
    osscar_opt.threads(3)
    assert blas() == {3}
    osscar_opt.threads(2)
    assert (blas(), in_force()) == ({2}, 2)
    with osscar_opt.threads(4):
        assert blas() == {4}
        osscar_opt.threads(5)
        assert blas() == {5}
    assert blas() == {2}, "what is set inside a block ends with the block"
    osscar_opt.threads(None)


def test_a_limit_that_is_kept_can_be_a_block_later_and_again() -> None:
    limit = osscar_opt.threads(3)
    for _ in range(2):
        with limit, osscar_opt.threads(2), limit:
            assert blas() == {3}
    assert repr(limit) == "ThreadLimit(3)"


def test_the_end_of_a_block_is_also_that_of_an_error() -> None:
    with pytest.raises(ZeroDivisionError), osscar_opt.threads(3):
        raise ZeroDivisionError


def test_ctrl_c_at_the_beginning_of_a_block_leaves_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    apply, calls = module._Switch._apply, []

    def interrupted_once(self: Any, *rest: Any) -> None:
        apply(self, *rest)
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Switch, "_apply", interrupted_once)
    with pytest.raises(KeyboardInterrupt), at_most(1):
        pytest.fail("begun")


def test_settings_do_not_pile_up() -> None:
    for n in (2, 3) * 100:
        osscar_opt.threads(n)
    assert len(module._switch._process.settings) <= 2
    osscar_opt.threads(None)


def test_a_cap_only_lowers() -> None:
    with osscar_opt.threads(3), at_most(2):
        assert blas() == {2}
        with osscar_opt.threads(4):
            assert blas() == {2}
        with osscar_opt.threads(1):
            assert blas() == {1}
    with threadpool_limits(2, user_api="blas"), at_most(3):
        assert blas() == {2}, "nobody asked for three"


def test_what_others_set_before_is_what_comes_back() -> None:
    with threadpool_limits(2, user_api="blas"):
        with osscar_opt.threads(3):
            assert blas() == {3}
        assert blas() == {2}


@pytest.mark.parametrize("n", [0, -1, 1.0, "4", True, np.float64(2)])
def test_what_is_no_number_of_threads_is_refused_in_a_sentence(n: Any) -> None:
    with pytest.raises(InputError, match=r"^threads = .* must be a whole number, at least 1\.$"):
        osscar_opt.threads(n)


def test_numbers_of_numpy_are_numbers() -> None:
    with osscar_opt.threads(np.int32(2)):  # type: ignore[arg-type]
        assert blas() == {2}


def test_cores_are_counted() -> None:
    import os

    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# -------------------------------------------------------------------------------------------------- several threads


def test_blocks_of_two_threads_may_end_in_any_order() -> None:
    """Limits that are restored naively leave the 3 of the block that ended first, for ever."""
    own = blas()
    first_begun, second_begun, first_over = threading.Event(), threading.Event(), threading.Event()
    seen: dict[str, set[int]] = {}

    def first() -> None:
        with osscar_opt.threads(3):
            first_begun.set()
            second_begun.wait(30)
        seen["first over"] = blas()
        first_over.set()

    def second() -> None:
        first_begun.wait(30)
        with osscar_opt.threads(2):
            second_begun.set()
            first_over.wait(30)
            seen["second"] = blas()
        seen["second over"] = blas()

    workers = [threading.Thread(target=work) for work in (first, second)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert seen == {"first over": {2}, "second": {2}, "second over": own}


def test_a_call_between_the_call_and_the_block_of_another_thread() -> None:
    own = blas()
    first = osscar_opt.threads(4)
    second = osscar_opt.threads(3)
    with contextlib.ExitStack() as outer:
        outer.enter_context(first)
        assert blas() == {4}
        with second:
            assert blas() == {3}
            outer.close()
            assert blas() == {3}
    assert blas() == own


def test_the_final_refits_of_many_threads_and_a_block_around_them() -> None:
    """Whatever their order: one thread while any of them runs, the block's three in between, its own after it."""
    active, lock, wrong = [0], threading.Lock(), []

    def refits(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            with one_blas_thread(when=True):
                with lock:
                    active[0] += 1
                time.sleep(chance.random() * 2e-3)
                if blas() != {1}:
                    wrong.append(blas())
                with lock:
                    active[0] -= 1
            time.sleep(chance.random() * 2e-3)

    own = blas()
    with osscar_opt.threads(3):
        workers = [threading.Thread(target=refits, args=(seed,)) for seed in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert blas() == {3}
    assert (blas(), wrong, active) == (own, [], [0])


def test_refits_of_several_threads_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2, timeout=30)

    def refit() -> bool:
        with one_blas_thread(when=True):
            both.wait()
        return True

    other = threading.Thread(target=refit)
    other.start()
    assert refit()
    other.join(30)


def test_no_other_thread_s_hold_on_the_pool_is_in_the_way() -> None:
    """From version 3.8 on, threadpoolctl ignores all threads but the first that sets OpenBLAS."""
    with threadpool_limits(2, user_api="blas"):

        def limited() -> set[int]:
            with at_most(1):
                return blas()

        assert in_thread(limited) == {1}
        assert blas() == {2}


# --------------------------------------------------------------------------------------------------------------- torch


def test_torch_is_limited_here_and_in_threads_to_come() -> None:
    import torch

    own = torch.get_num_threads()
    with osscar_opt.threads(3):
        assert torch.get_num_threads() == 3
        assert in_thread(torch.get_num_threads) == 3
    assert torch.get_num_threads() == own
    assert in_thread(torch.get_num_threads) == own


def openmp() -> set[int]:
    """Threads of the pools that count for each thread apart, as this thread sees them."""
    import torch  # noqa: F401 - brings one

    return {pool["num_threads"] for pool in pools() if pool["user_api"] == "openmp"}


def test_the_solver_s_thread_has_the_limit_of_pools_that_count_for_each_thread_apart() -> None:
    openmp()  # they exist before the solver's thread begins

    class Looking(Solver):
        name = "looking"

        def propose(self, problem: Problem, **_: Any) -> Proposal:
            seen = [openmp()]
            with osscar_opt.threads(2):
                seen.append(openmp())
            seen.append(openmp())
            support = problem.limits.fill(range(problem.n), np.zeros(problem.n, dtype=bool))
            return Proposal(support, stats={"seen": seen})

    own = openmp()
    with osscar_opt.threads(3):
        stats = Problem(np.eye(3), np.ones((3, 1)), keep=1).solve(Looking()).stats
    assert stats["seen"] == [{3}, {2}, {3}]
    assert openmp() == own


def test_a_thread_s_own_pools_come_back_although_another_s_block_goes_on() -> None:
    import torch

    own = torch.get_num_threads()
    begun, over = threading.Event(), threading.Event()

    def other() -> None:
        with osscar_opt.threads(3):
            begun.set()
            over.wait(30)

    worker = threading.Thread(target=other)
    with osscar_opt.threads(2):
        worker.start()
        begun.wait(30)
    here = torch.get_num_threads()
    over.set()
    worker.join(30)
    assert (here, torch.get_num_threads()) == (own, own)


def test_torch_is_limited_when_it_is_imported_later() -> None:
    code = """
import importlib.util, sys, threading
import osscar_opt
with osscar_opt.threads(3):
    assert "torch" not in sys.modules
    assert importlib.util.find_spec("torch") is not None
    import torch
    seen = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start(); thread.join()
from osscar_opt.linalg.threads import _AfterTorch
assert not any(isinstance(finder, _AfterTorch) for finder in sys.meta_path)
print(*seen, torch.get_num_threads())
"""
    assert command(code, OMP_NUM_THREADS="2") == "3 3 2"


def test_nobody_waits_for_torch_without_a_limit() -> None:
    with osscar_opt.threads(2):
        pass
    assert not any(isinstance(finder, module._AfterTorch) for finder in sys.meta_path)


# -------------------------------------------------------------------------------------------------------- environment


LOOK = (
    "from threadpoolctl import threadpool_info; print(*{pool['num_threads'] for pool in threadpool_info()})"
)


@pytest.mark.parametrize(
    "use",
    [
        "from osscar_opt import Problem",
        "from osscar_opt.formulations.problem import Problem; Problem([[1.0]], [[1.0]], keep=1).solve('magnitude')",
        "import osscar_opt; osscar_opt.solve",
    ],
)
def test_the_environment_is_a_limit_from_the_start(use: str) -> None:
    assert command(f"{use}\n{LOOK}", OSSCAR_OPT_THREADS="3") == "3"


def test_a_call_counts_more_than_the_environment() -> None:
    code = f"import osscar_opt\nwith osscar_opt.threads(2): pass\n{LOOK}\nosscar_opt.threads(4)\n{LOOK}"
    assert command(code, OSSCAR_OPT_THREADS="3").split() == ["3", "4"]


def test_an_empty_variable_is_none() -> None:
    assert command(f"from osscar_opt import Problem\n{LOOK}", OSSCAR_OPT_THREADS="").split() == [
        str(n) for n in blas()
    ]


def test_a_bad_value_is_refused_in_a_sentence_at_the_first_use() -> None:
    code = """
import osscar_opt
from osscar_opt.errors import InputError
for attempt in range(2):
    try:
        osscar_opt.Problem
    except InputError as error:
        print(error)
"""
    said = "OSSCAR_OPT_THREADS = 'many' must be a whole number, at least 1."
    assert command(code, OSSCAR_OPT_THREADS="many").splitlines() == [said, said]


def test_importing_the_package_stays_light_whatever_the_environment() -> None:
    assert command("import osscar_opt, sys; print('numpy' in sys.modules)", OSSCAR_OPT_THREADS="2") == "False"


# -------------------------------------------------------------------------------------------------------- elsewhere


def test_a_child_process_has_the_limit_too() -> None:
    problem = Problem(np.eye(3), np.ones((3, 1)), keep=1)
    with osscar_opt.threads(3):
        assert problem.solve(_Counting(), isolation="process").stats["threads"] == [3]


class _Counting(Solver):
    name = "counting"

    def propose(self, problem: Problem, **_: Any) -> Proposal:
        return Proposal(
            problem.limits.fill(range(problem.n), np.zeros(problem.n, dtype=bool)),
            stats={"threads": [*blas()]},
        )


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    Problem(np.eye(3), np.ones((3, 1)), keep=1).save(path)
    return path


def run(*words: object, **environment: str) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80", **environment})


def test_the_command_line_has_the_switch(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    propose = Random.propose

    def looking(self: Random, *args: Any, **rest: Any) -> Proposal:
        seen.append(blas())
        return propose(self, *args, **rest)

    monkeypatch.setattr(Random, "propose", looking)
    assert run("solve", instance, "-m", "random", "--threads", 3).exit_code == 0
    assert run("solve", instance, "-m", "random", OSSCAR_OPT_THREADS="2").exit_code == 0
    assert run("solve", instance, "-m", "random").exit_code == 0
    assert seen == [{3}, {2}, blas()]


@pytest.mark.parametrize("name", ["solve", "path", "bound", "verify", "extract", "demo"])
def test_every_command_that_computes_takes_it(name: str) -> None:
    assert "--threads" in run(name, "--help", COLUMNS="200").stdout


def test_a_bad_number_on_the_command_line_is_one_line(instance: Path) -> None:
    result = run("path", instance, "--threads", 0)
    assert result.exit_code == 2
    assert result.stderr == "osscar-opt: threads = 0 must be a whole number, at least 1.\n"
