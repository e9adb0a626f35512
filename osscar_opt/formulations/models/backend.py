"""One run of a solver through cvxpy, with what the solver itself says in hand.

``cvxpy.Problem.solve`` turns several ways to stop into one status or one exception, and warns; a bound, or the reason
of a failure, is then out of reach.  Its three steps, taken one by one, leave everything there to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["run_backend"]


def run_backend(
    problem: Any,
    solver: str,
    *,
    options: Mapping[str, Any] | None = None,
    verbose: bool = False,
    mend: Callable[[Any], None] | None = None,
) -> tuple[Any, str]:
    """Solve a cvxpy problem, and put a solution, where there is one, into its variables and constraints.

    Parameters
    ----------
    problem : cvxpy.Problem
    solver : str
        As cvxpy calls it.
    options : mapping, optional
        The solver's own options.
    verbose : bool, optional
    mend : callable, optional
        Gets what the solver returned, to be corrected before cvxpy reads it.

    Returns
    -------
    raw : object
        What the solver returned; of a kind of its own for every solver.
    status : str
        cvxpy's reading of it.

    Raises
    ------
    cvxpy.SolverError
        If cvxpy does not have the solver, or it cannot solve problems of this kind.

    Examples
    --------
    >>> import cvxpy
    >>> x = cvxpy.Variable()
    >>> raw, status = run_backend(cvxpy.Problem(cvxpy.Minimize(x), [x >= 2.0]), "CLARABEL")
    >>> status, round(float(x.value), 6)
    ('optimal', 2.0)
    """
    from cvxpy.settings import SOLUTION_PRESENT

    asked = dict(options or {})
    data, chain, inverse = problem.get_problem_data(solver, solver_opts=asked)
    raw = chain.solve_via_data(problem, data, verbose=verbose, solver_opts=asked)
    if mend is not None:
        mend(raw)
    solution = chain.invert(raw, inverse)
    if solution.status in SOLUTION_PRESENT:
        problem.unpack(solution)
    return raw, str(solution.status)
