"""Every method as a row: its paper, its formula, what it needs beside the problem, what it updates, where it lives.

One table for three uses: `osscar_opt.bench.compare` reads from it which rules apply, ``docs/methods.md`` is generated
from it, and a test holds it against the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from osscar_opt.errors import UnknownMethodError
from osscar_opt.formulations.problem import Problem

__all__ = ["OUT_OF_SCOPE", "RULES", "Need", "Rule", "rule", "why_not"]

Need = Literal[
    "H, G", "diag H, W", "H, W", "means", "gradients", "feature maps", "producers' weights", "seed", "W"
]
Kind = Literal["exact", "search", "baseline", "published"]


@dataclass(frozen=True)
class Rule:
    """A method, and a score that a method takes if it is one.

    Attributes
    ----------
    name : str
        Of the rule: the method's own, or that of the scores handed to method ``"scores"``.
    paper, formula : str
        Formula in the notation of docs/concepts.
    needs : tuple of str
        Beside a keep.
    updates : str
        What of the weights that stay, as published.
    where : str
        Module.
    kind : {"exact", "search", "baseline", "published"}
    method : str
        Registered name; ``"scores"`` for rules that only compute scores.
    option : str
        The method's option that takes what is computed from a model, or "".
    refits : bool
        Whether the exact refit is part of the rule, so that there is no other way to run it.

    Examples
    --------
    >>> rule("taylor").method, rule("taylor").option
    ('scores', 'scores')
    """

    name: str
    paper: str
    formula: str
    needs: tuple[str, ...]
    updates: str
    where: str
    kind: Kind = "published"
    method: str = ""
    option: str = ""
    refits: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method or self.name)


_S, _P, _T = "osscar_opt.solvers.", "osscar_opt.solvers.published.", "osscar_opt.torch.scores."
_ALL = "all weights that stay"
_REFIT = "all weights that stay: the refit"


def _own(name: str, kind: Kind, paper: str, formula: str) -> Rule:
    return Rule(name, paper, formula, ("H, G",), _REFIT, _S + name, kind, refits=True)


def _scored(name: str, paper: str, formula: str, need: Need) -> Rule:
    return Rule(name, paper, formula, (need,), "nothing", _T + name, method="scores", option="scores")


RULES: tuple[Rule, ...] = (
    _own("auto", "exact", "", "picks one of these by the size of the problem"),
    _own("exact", "exact", "", "branch and bound on the perspective relaxation"),
    _own("highs", "exact", "Duran and Grossmann, Math. Prog. 1986", "outer approximation, HiGHS as the master"),
    _own("cvxpy", "exact", "", "big-M or perspective model, any solver behind cvxpy"),
    _own("exhaustive", "exact", "", "every support, by pivots"),
    _own("greedy", "search", "", "remove the group of least ½ tr(W_g' inv(A_gg) W_g), one at a time, refitted"),
    _own("forward", "search", "", "add the group of largest ½ tr(r' inv(B) r), one at a time, refitted"),
    _own("osscar", "search", "Meng et al., ICML 2024", "staged removal, then local search by low-rank updates"),
    _own("swap", "search", "", "best single exchange until none helps"),
    _own("search", "search", "", "several exchanges at once, with restarts"),
    _own("patterns", "search", "", "best pattern of one block at a time, all else refitted"),
    Rule("magnitude", "MP", "Σ |W_ji| or Σ W_ji² over the group", ("W",), "nothing", _S + "magnitude", "baseline"),
    Rule("magnitude_refit", "MP+", "as magnitude", ("H, G",), _REFIT, _S + "magnitude_refit", "baseline", refits=True),
    Rule("random", "", "a random order", ("seed",), _REFIT, _S + "random", "baseline", refits=True),
    Rule("scores", "", "any number a group, handed over", (), "nothing", _S + "scores", "baseline", option="scores"),
    Rule("wanda", "Sun et al., ICLR 2024; structured: An et al., AAAI 2024", "Σ |W_ji| ‖X_j‖ over the group",
         ("diag H, W",), "nothing", _P + "wanda"),
    Rule("activation", "Muralidharan et al., NeurIPS 2024", "‖X_g‖", ("diag H, W",), "nothing", _P + "activation"),
    Rule("flap", "An et al., AAAI 2024", "Σ Var(X_j) ‖W_j‖²", ("diag H, W", "means"), "the bias", _P + "flap"),
    Rule("cfsp", "Wang et al., COLING 2025", "relative weight times ‖X_j‖", ("diag H, W",), "nothing", _P + "cfsp"),
    Rule("ziplm", "Kurtic et al., NeurIPS 2023", "tr(W_g' inv(A_gg) W_g), one at a time", ("H, W",), _ALL,
         _P + "ziplm"),
    Rule("slimgpt", "Ling et al., NeurIPS 2024", "Σ ‖W_j‖² / L_jj², L L' = A_gg", ("H, W",), _ALL, _P + "slimgpt"),
    Rule("sparsegpt", "Frantar and Alistarh, ICML 2023", "Σ ‖W_j‖² / U_jj², U'U = inv(H), once", ("H, W",),
         "rows after a removed one", _P + "sparsegpt"),
    Rule("thinet", "Luo et al., ICCV 2017", "greedy on the collapsed problem", ("H, W",), "one factor a group",
         _P + "thinet"),
    Rule("channel_lasso", "He et al., ICCV 2017", "lasso on the collapsed problem", ("H, G",), _REFIT,
         _P + "channel_lasso", refits=True),
    Rule("group_lasso", "Yuan and Lin, JRSS B 2006", "objective + λ Σ √s ‖H_gg^½ W_g‖", ("H, G",),
         "all weights that stay, shrunken", _P + "group_lasso"),
    Rule("abess", "Zhu et al., PNAS 2020", "splicing by sacrifices", ("H, G",), _REFIT, _P + "abess", refits=True),
    Rule("udfc", "Bai et al., ICCV 2023", "‖v_g‖; s = inv(Γ_KK + λI) Γ_KR, Γ_ij = ⟨v_i, v_j⟩",
         ("producers' weights",), "all weights that stay, without data", _P + "udfc", option="filters"),
    _scored("fpgm", "He et al., CVPR 2019", "Σ_v ‖v_g − v‖ over all filters v", "producers' weights"),
    _scored("chip", "Sui et al., NeurIPS 2021", "‖A‖_* − ‖A without g‖_*, A the feature maps", "feature maps"),
    _scored("beta_rank", "Homayounfar et al., 2023", "mean |f_g| Σ_s σ_out(s) / σ_in(s)", "feature maps"),
    _scored("head_importance", "Michel et al., NeurIPS 2019", "E |∂L/∂ξ_g|, ξ_g a gate", "gradients"),
    _scored("taylor", "Molchanov et al., CVPR 2019", "mean_b (Σ w ∂L_b/∂w)², over the filter", "gradients"),
    _scored("nvit", "Yang et al., CVPR 2023", "mean_b (Σ w ∂L_b/∂w)², over all that goes", "gradients"),
    _scored("loraprune", "Zhang et al., 2023", "Σ |ĝ (W + BA)|, ĝ from the gradients of A and B", "gradients"),
    _scored("lrp", "Yeom et al., Pattern Recognition 2021", "Σ |R_g|, relevance by α = 1, β = 0", "gradients"),
)  # fmt: skip

OUT_OF_SCOPE: tuple[tuple[str, str], ...] = (
    (
        "L0 and movement pruning (Louizos et al. 2018, Sanh et al. 2020)",
        "masks are learned together with the weights over epochs: there is no score of a trained network.",
    ),
    (
        "Network slimming (Liu et al. 2017)",
        "batch norm's factors mean something only after training with a penalty on them.",
    ),
    (
        "Sheared LLaMA (Xia et al. 2024)",
        "masks and multipliers are trained on billions of tokens, and training goes on afterwards.",
    ),
    (
        "LoRAPrune, NViT, CHIP, FPGM, Beta-Rank, LRP and Taylor as whole procedures",
        "each prunes a little, trains, and repeats: here their scores are taken once, and no weight is trained.",
    ),
    (
        "The search over layers of ZipLM and SPDY, the distribution over layers of FLAP, CFSP, NViT and SlimGPT",
        "how much each layer loses is allocation, not selection: {doc}`allocation`.",
    ),
    ("UDFC's quantisation", "it changes the precision of weights and chooses no groups."),
    (
        "SliceGPT (Ashkboos et al. 2024)",
        "it rotates the residual stream and removes principal directions: no group of the given weights goes.",
    ),
)
"""What is not here, and why, in one sentence each."""


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises
    ------
    UnknownMethodError
        If there is none; lists those there are.

    Examples
    --------
    >>> rule("wanda").needs
    ('diag H, W',)
    """
    found = next((other for other in RULES if other.name == name), None)
    if found is None:
        raise UnknownMethodError(
            f"there is no rule {name!r}. Rules: {', '.join(other.name for other in RULES)}."
        )
    return found


def why_not(found: Rule, problem: Problem, tables: frozenset[str] = frozenset()) -> str:
    """Why a rule cannot be applied to a problem, or "".

    Parameters
    ----------
    found : Rule
    problem : Problem
    tables : frozenset of str
        Names of the rules whose scores or filters are at hand.

    Examples
    --------
    >>> import numpy as np
    >>> why_not(rule("flap"), Problem(np.eye(2), np.ones((2, 1)), keep=1))
    'needs the means of the inputs: pose the problem with an intercept'
    """
    from osscar_opt.solvers.registry import solvers

    info = solvers()[found.method]
    if not info.available:
        return str(info.why_not)
    if found.name == "scores" and "scores" not in tables:
        return "needs scores: pass arrays={'scores': ...}"
    if found.option and found.name not in tables:
        return f"needs {', '.join(found.needs)}: give the model and the layer"
    if "means" in found.needs and problem.input_mean is None:
        return "needs the means of the inputs: pose the problem with an intercept"
    missing = problem.features - info.handles - {"forced"}
    return f"does not handle {', '.join(sorted(missing))}" if missing else ""
