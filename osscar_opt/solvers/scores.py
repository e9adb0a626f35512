r"""Any scores: keep the groups whose scores, handed over from outside, are largest.

With s_g the score of group g, the support is

.. math:: S = \arg\max_{|S| \le k} \sum_{g \in S} s_g

(with other limits: groups in order of decreasing score, each that still fits). For rules that need what a problem does
not hold: gradients, feature maps, weights of other layers. `osscar_opt.torch.scores` computes those of published rules.
The dense weights of the groups that stay are left as they are, or refitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import OptionError
from osscar_opt.formulations.per_problem import ArraySource, PerProblem
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores(ScoredRule):
    """Keeps the groups of largest score, the scores being given.

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.
    scores : array_like (n,), mapping of str to array_like, callable, or path
        One number a group: for this problem, by the problem's name, as a function of the problem, or in a ``.npy``
        file. A last group that is always kept (inputs that belong to no unit of a site) needs no score.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(3), dense_weights=[[1.0], [3.0], [2.0]], keep=1, name="fc")
    >>> problem.solve("scores", scores=[0.5, 0.1, 0.2]).kept
    array([0])
    >>> problem.solve("scores", scores={"fc": [0.1, 0.2, 0.7]}).kept
    array([2])
    """

    name: ClassVar[str] = "scores"
    required_options: ClassVar[tuple[str, ...]] = ("scores",)

    scores: ArraySource = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scores", PerProblem.coerce(self.scores, "scores"))

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group, shape (n,), as handed over.

        Raises
        ------
        OptionError
            If there are none for the problem, or not one for each group.
        """
        given = PerProblem.find(self.scores, problem, "scores")
        if given.shape == (problem.n - 1,) and problem.always_keep[-1]:
            given = np.append(given, np.inf)  # inputs of a layer that are none of its site's
        if given.shape != (problem.n,):
            raise OptionError(
                f"option 'scores' must hold one number for each of the {problem.n} groups of "
                f"{problem.name or 'the problem'}, but has shape {given.shape}."
            )
        return given
