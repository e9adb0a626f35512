"""Certificates: valid ones verify, no bound is above the optimum that enumeration finds, files are as they should be.

What makes and judges the certificates here is plain numpy, written apart from the library: random trees, any D below
the Gram matrix, any z, and 2^n refits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.certificates import Certificate, ProofTree, check

# ------------------------------------------------------------------------------------------- enumeration, apart


def fitted(gram: np.ndarray, cross: np.ndarray, rows: np.ndarray) -> np.ndarray:
    weights = np.zeros(cross.shape)
    index = np.flatnonzero(rows & (gram.diagonal() > 0.0))
    weights[index] = np.linalg.solve(gram[np.ix_(index, index)], cross[index])
    return weights


def value_of(problem: Any, support: np.ndarray) -> float:
    """base + 1/2 tr(A' H A), A the difference of the refit and the unconstrained optimum."""
    gram, cross = problem.gram, problem.cross
    best = fitted(gram, cross, np.ones(len(gram), dtype=bool))
    apart = fitted(gram, cross, support[problem.groups.group_of_row]) - best
    base = problem.base if problem.base_is_given else problem.constant - 0.5 * np.sum(best * cross)
    return float(base + 0.5 * np.sum(apart * (gram @ apart)))


def feasible(problem: Any, support: np.ndarray) -> bool:
    forced = not np.any(problem.always_keep & ~support) and not np.any(problem.always_remove & support)
    used = problem.limits.usage @ support
    return bool(forced and np.all(used <= problem.limits.limit * (1 + 1e-9)))


def all_values(problem: Any) -> dict[tuple[bool, ...], float]:
    supports = itertools.product([False, True], repeat=len(problem.always_keep))
    return {s: value_of(problem, np.array(s)) for s in supports if feasible(problem, np.array(s))}


def slack(problem: Any, value: float) -> float:
    """What rounding may do to a value here."""
    explained = 0.5 * np.sum(
        fitted(problem.gram, problem.cross, np.ones(len(problem.gram), dtype=bool)) * problem.cross
    )
    return 2e-9 * abs(value) + 1e-12 * abs(explained)


# ------------------------------------------------------------------------------------------- problems and proofs


def random_problem(rng: np.random.Generator, n: int = 0, limits: str = "", shape: str = "") -> Problem:
    n = n or int(rng.integers(2, 8))
    shape = shape or str(rng.choice(["single", "mixed", "equal"]))
    sizes = {
        "single": np.ones(n, dtype=int),
        "mixed": rng.integers(1, 5, n),
        "equal": np.full(n, rng.integers(2, 5)),
    }[shape]
    groups = rng.permutation(np.repeat(np.arange(n), sizes))
    p = len(groups)
    q = int(rng.choice([q for q in range(1, 3 * n + 1) if q != p]))
    inputs = rng.normal(size=(2 * p, p)) @ rng.normal(size=(p, p)) * 10.0 ** rng.uniform(-1.5, 1.5, p)
    gram = inputs.T @ inputs / len(inputs)
    gram += 10.0 ** rng.uniform(-3, -1) * np.diag(gram.diagonal().mean() * np.ones(p))
    dense = rng.normal(size=(p, q))
    data: dict[str, Any] = {"dense_weights": dense}
    if rng.random() < 0.4:
        data["cross"] = gram @ dense + 0.1 * rng.normal(size=(p, q)) * np.sqrt(gram.diagonal())[:, None]
    if rng.random() < 0.3:
        data["constant"] = float(rng.uniform(1, 3) * np.sum(dense * (gram @ dense)))
    if rng.random() < 0.2:  # dead rows, some of them whole groups
        dead = rng.random(p) < 0.2
        gram[dead] = gram[:, dead] = 0.0
        if "cross" in data:
            data["cross"][dead] = 0.0
    limits = limits or str(rng.choice(["keep", "keep", "budget", "blocks", "both", "none"]))
    if limits in ("keep", "both"):
        data["keep"] = int(rng.integers(0, n + 1))
    if limits in ("budget", "both"):
        data["costs"] = rng.uniform(0, 1, n) if rng.random() < 0.5 else rng.integers(0, 5, n).astype(float)
        data["budget"] = float(rng.uniform(0.1, 0.9) * data["costs"].sum())
    if limits == "blocks":
        data["blocks"] = rng.integers(0, 2, n)
        data["block_keep"] = rng.integers(0, n // 2 + 1, 2)
    problem = Problem(gram, groups=groups, **data)
    if rng.random() < 0.4:
        state = rng.choice([0, 0, 0, 1, 2], n)
        problem = problem.with_limits(always_remove=state == 2)
        if feasible(problem, state == 1):
            problem = problem.with_limits(always_keep=state == 1)
    return problem


@dataclass
class Made:
    """A certificate, and what an evaluation apart from the checker says its leaves prove."""

    certificate: Certificate
    proved: float


class Maker:
    """Writes a random proof, and bounds its leaves by the textbook formulas: Schur complement, all completions.

    A tight one proves the optimum: what a relaxation or a superset does not prove is enumerated.
    """

    def __init__(self, rng: np.random.Generator, problem: Problem, *, tight: bool = False) -> None:
        self.rng, self.problem, self.tight = rng, problem, tight
        self.tree = ProofTree.of(problem)
        dead = (problem.gram.diagonal() == 0.0) & ~problem.gram.any(axis=1)
        self.gram = problem.gram + np.diag(dead.astype(float))
        terms = int(rng.choice([1, 1, 2, 3]))
        q = problem.q
        self.terms = np.sort(
            np.concatenate([np.arange(min(terms, q)), rng.integers(0, min(terms, q), q)])[:q]
        )
        self.split = terms > 1 or rng.random() < 0.3
        if self.split:
            kept = int(rng.integers(min(terms, q), q + 1))
            self.vectors = np.linalg.qr(rng.normal(size=(q, kept)))[0]
            self.terms = np.concatenate([np.arange(min(terms, q)), rng.integers(0, min(terms, q), kept)])[
                :kept
            ]
        else:
            self.vectors, self.terms = np.eye(q), np.zeros(q, dtype=int)
        self.bounds: list[float] = []
        self.values = all_values(problem)
        self.best = min(self.values.values(), default=np.inf)

    def make(self) -> Made:
        self._grow(0, [], 0)
        proved = min(self.bounds)
        support = None
        if self.values and self.rng.random() < 0.8:
            support = np.array(min(self.values, key=self.values.__getitem__))
        certificate = Certificate.of(
            self.problem,
            self.tree,
            bound=-1.0,
            support=support,
            value=None
            if support is None or self.rng.random() < 0.5
            else self.values[tuple(support.tolist())],
            directions=(self.vectors, self.terms) if self.split else None,
        )
        return Made(certificate, proved)

    def _grow(self, node: int, relaxations: list[tuple[int, int]], depth: int) -> None:
        removed, kept = self.tree.state(node)
        free = np.flatnonzero(~(removed | kept))
        if self.rng.random() < 0.7:
            how = self._relax if self.rng.random() < 0.5 else self._relax_dual
            relaxations = [*relaxations, (how(node, removed, kept), node)]
        if free.size and depth < 3 and self.rng.random() < 0.8:
            for child in self.tree.branch(node, int(self.rng.choice(free))):
                self._grow(child, relaxations, depth + 1)
            return
        choices = ["superset", "enumerated", "open"] + ["relaxation"] * (3 if relaxations else 0)
        if self.tight:
            choices = [
                how for how in choices if how == "enumerated" or self._closes(how, relaxations, removed, kept)
            ]
        usage, limit = self.problem.limits.usage, self.problem.limits.limit
        if np.any(usage @ kept > limit * (1 + 1e-8)):
            choices = ["infeasible"]
        how = str(self.rng.choice(choices))
        if how == "relaxation":
            index = -1 if self.tight else int(self.rng.integers(len(relaxations)))
            self.tree.close(node, relaxation=relaxations[index][0])
            self.bounds.append(self._relaxed(relaxations[index], removed, kept))
        elif how == "enumerated":
            self.tree.close_enumerated(node)
            inside = [
                v
                for s, v in self.values.items()
                if not np.any(removed & s) and not np.any(kept & ~np.array(s))
            ]
            self.bounds.append(min(inside, default=np.inf))
        elif how == "infeasible":
            self.tree.close_infeasible(node)
            self.bounds.append(np.inf)
        else:
            bound = value_of(self.problem, ~removed)
            if how == "superset":
                self.tree.close_superset(node)
            elif relaxations:
                bound = max(bound, self._relaxed(relaxations[-1], removed, kept))
            self.bounds.append(bound)

    def _closes(self, how: str, relaxations: list[Any], removed: np.ndarray, kept: np.ndarray) -> bool:
        if how == "relaxation":
            return self._relaxed(relaxations[-1], removed, kept) >= self.best
        return value_of(self.problem, ~removed) >= self.best

    def _node(self, removed: np.ndarray, kept: np.ndarray) -> tuple[Any, ...]:
        """Schur complement at a node: H, G, constant, rows of its free groups."""
        of_row = self.problem.groups.group_of_row
        free = np.flatnonzero(~(removed | kept))
        rows = np.concatenate([np.flatnonzero(of_row == g) for g in free] or [np.zeros(0, int)])
        held = np.flatnonzero(kept[of_row])
        h, g = self.gram, self.problem.cross
        lever = np.linalg.solve(h[np.ix_(held, held)], np.hstack([h[np.ix_(held, rows)], g[held]]))
        schur = h[np.ix_(rows, rows)] - h[np.ix_(rows, held)] @ lever[:, : len(rows)]
        cross = g[rows] - h[np.ix_(rows, held)] @ lever[:, len(rows) :]
        constant = self.problem.constant - 0.5 * np.sum(g[held] * lever[:, len(rows) :])
        return schur, cross, constant, [np.flatnonzero(of_row[rows] == group) for group in free], free

    def _relax(self, node: int, removed: np.ndarray, kept: np.ndarray) -> int:
        rng = self.rng
        h, _, _, places, free = self._node(removed, kept)
        z = np.ones(len(free)) if rng.random() < 0.1 else rng.uniform(0.02, 1.0, len(free))
        if self.tight and self.values:  # near the optimum's 0/1 point
            best = np.array(min(self.values, key=self.values.__getitem__))
            z = np.where(best[free], 1 - 0.2 * z, 0.2 * z)
        blocks = []
        for _ in range(int(self.terms.max()) + 1):
            kind, d = rng.choice(["least", "diagonal", "blocks"]), np.zeros(h.shape)
            for rows in places:
                square = np.ix_(rows, rows)
                spread = rng.normal(size=(len(rows), len(rows)))
                d[square] = {
                    "least": np.eye(len(rows)),
                    "diagonal": np.diag(h.diagonal()[rows]),
                    "blocks": h[square] * 0.5 + spread @ spread.T * h.diagonal()[rows].mean(),
                }[str(kind)]
            if len(h):
                lower = np.linalg.cholesky(h)
                whitened = np.linalg.solve(lower, np.linalg.solve(lower, d).T)
                d *= rng.uniform(0.3, 0.9999) / np.linalg.eigvalsh(whitened).max()
            blocks.append([d[np.ix_(rows, rows)] for rows in places])
        flat = [np.concatenate([np.zeros(0), *(b.ravel() for b in term)]) for term in blocks]
        lam = rng.uniform(0, 1, len(self.problem.limits.limit)) * self.problem.constant / max(1, len(h))
        self.known = getattr(self, "known", {})
        index = self.tree.relax(node, z, flat, lam if rng.random() < 0.7 else None)
        self.known[index] = (z, blocks, removed, kept)
        return index

    def _relax_dual(self, node: int, removed: np.ndarray, kept: np.ndarray) -> int:
        """Lambda near the best for y if the proof is to be tight, else at random; delta by the largest eigenvalue."""
        rng = self.rng
        h, g, _, places, free = self._node(removed, kept)
        y = rng.uniform(0, 1, len(free))
        if self.tight and self.values:
            best = np.array(min(self.values, key=self.values.__getitem__))
            y = np.where(best[free], 0.1 * y, 1 - 0.1 * y)
        m = np.linalg.inv(h)
        dense = m @ g @ self.vectors
        share = np.zeros(len(h))
        for rows, yg in zip(places, y, strict=True):
            share[rows] = yg
        if self.tight:
            lam = np.linalg.solve(
                m * np.outer(share, share) + np.diag(share * (1 - share) * m.diagonal()),
                dense * share[:, None],
            )
        else:
            unit = np.sqrt(np.abs(dense).mean() if dense.size else 1.0)
            lam = rng.normal(size=dense.shape) * unit * h.diagonal()[:, None] ** 0.25
        lam = lam.astype(np.float32 if rng.random() < 0.7 else np.float64)
        q = self._form(m, lam, places)
        scale = np.sqrt(q.diagonal()) if len(q) else np.ones(0)
        largest = np.linalg.eigvalsh(q / np.outer(scale, scale)).max() if len(q) else 1.0
        delta = largest * scale**2 * rng.choice([1.0 + 1e-9, 1.01, 1.5])
        prices = rng.uniform(0, 1, len(self.problem.limits.limit)) * self.problem.constant / max(1, len(h))
        index = self.tree.relax_dual(node, y, delta, lam, prices if rng.random() < 0.7 else None)
        self.known = getattr(self, "known", {})
        self.known[index] = ("dual", (y, delta, lam), removed, kept)
        return index

    @staticmethod
    def _form(m: np.ndarray, lam: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
        q = np.zeros((len(places), len(places)))
        for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
            q[i, j] = np.trace(lam[a].T.astype(float) @ m[np.ix_(a, b)] @ lam[b].astype(float))
        return q

    def _dual(self, numbers: tuple[Any, ...], gone: np.ndarray, held: np.ndarray) -> tuple[float, np.ndarray]:
        """Level and scores of a dual relaxation: a support costs the level and the scores of what it removes."""
        y, delta, lam = numbers
        h, g, _, places, _ = self._node(gone, held)
        m = np.linalg.inv(h)
        dense = m @ g @ self.vectors
        form = np.diag(delta) - self._form(m, lam, places)
        scores = np.array([np.sum(lam[rows] * dense[rows]) for rows in places]) - delta / 2 + form @ y
        return value_of(self.problem, ~gone) - 0.5 * y @ form @ y, scores

    def _relaxed(self, relaxation: tuple[int, int], removed: np.ndarray, kept: np.ndarray) -> float:
        """phi(z) and its gradient term by term; the best completion by trying all of them."""
        z, blocks, gone, held = self.known[relaxation[0]]
        if isinstance(z, str):
            level, scores = self._dual(blocks, gone, held)
            return level + float(scores.sum()) - self._most(scores, gone, held, removed, kept)
        h, g, constant, places, free = self._node(gone, held)
        scores = np.zeros(len(free))
        bound = constant
        for t, term in enumerate(blocks):
            vectors = self.vectors[:, self.terms == t]
            d = np.zeros(h.shape)
            weight = np.ones(len(h))
            for rows, block, zg in zip(places, term, z, strict=True):
                d[np.ix_(rows, rows)], weight[rows] = block, zg
            w = np.linalg.solve(h + d / weight[:, None] - d, g @ vectors)
            bound -= 0.5 * np.sum(w * ((h - d) @ w))
            for j, rows in enumerate(places):
                scores[j] += 0.5 * np.sum(w[rows] * (d @ w)[rows]) / z[j] ** 2
        outside = self.problem.cross - self.problem.cross @ self.vectors @ self.vectors.T
        live = ~gone[self.problem.groups.group_of_row]
        bound -= 0.5 * np.sum(
            fitted(self.gram, outside, live) * outside
        )  # the most the other outputs can explain
        outside_held = fitted(self.gram, outside, held[self.problem.groups.group_of_row])
        bound += 0.5 * np.sum(outside_held * outside)  # and the part that `constant` counts already
        return bound - self._most(scores, gone, held, removed, kept)

    def _most(
        self, scores: np.ndarray, gone: np.ndarray, held: np.ndarray, removed: np.ndarray, kept: np.ndarray
    ) -> float:
        """The largest sum of scores of groups kept, over the supports below a leaf."""
        free = np.flatnonzero(~(gone | held))
        most = -np.inf
        newly_kept, newly_removed = kept[free] & ~held[free], removed[free] & ~gone[free]
        for choice in itertools.product([False, True], repeat=len(free)):
            chosen = np.array(choice, dtype=bool)
            support = held.copy()
            support[free] = chosen
            if (
                np.all(chosen >= newly_kept)
                and not np.any(chosen & newly_removed)
                and feasible(self.problem, support)
            ):
                most = max(most, float(scores @ chosen))
        return most


def made(seed: int, *, tight: bool = False, **options: Any) -> tuple[Problem, Maker, Made]:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, **options)
    maker = Maker(rng, problem, tight=tight)
    return problem, maker, maker.make()


@pytest.mark.parametrize("seed", range(150))
def test_leaves_prove_what_they_should(seed: int) -> None:
    """The bound is that of the textbook formulas under one limit, and never above the best of all supports."""
    problem, maker, proof = made(seed)
    report = check(proof.certificate.claiming(bound=-1e300, support=proof.certificate.support))
    assert report.valid, report.reasons
    best = min(maker.values.values(), default=np.inf)
    if np.isfinite(best):
        assert report.bound <= best + slack(problem, best)
    tolerance = slack(problem, proof.proved) * 10
    assert report.bound <= proof.proved + tolerance
    if len(problem.limits.limit) <= 1 and problem.budget is None and np.isfinite(proof.proved):
        assert report.bound >= proof.proved - tolerance


# -------------------------------------------------------------------------------------------- exact arithmetic


def explained(gram: Any, cross: Any, rows: tuple[int, ...]) -> Fraction:
    """1/2 tr(G_S' inv(H_SS) G_S) in rational arithmetic, by Gauss and Jordan."""
    table = [[Fraction(gram[i][j]) for j in rows] + [Fraction(x) for x in cross[i]] for i in rows]
    for c in range(len(rows)):
        pivot = table[c] = [x / table[c][c] for x in table[c]]
        for r in set(range(len(rows))) - {c}:
            table[r] = [x - table[r][c] * y for x, y in zip(table[r], pivot, strict=True)]
    solved = [row[len(rows) :] for row in table]
    return sum(
        (
            Fraction(g) * x / 2
            for i, row in zip(rows, solved, strict=True)
            for g, x in zip(cross[i], row, strict=True)
        ),
        Fraction(0),
    )


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e9, 1e12, 1e14])
def test_rounding_never_lifts_a_bound_above_the_exact_optimum(condition: float) -> None:
    """However ill-conditioned: the bound falls behind, or the certificate is refused; no tolerance here."""
    for seed in range(8):
        rng = np.random.default_rng([seed, int(np.log10(condition))])
        n = 5
        turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
        gram = (turn * np.geomspace(1, 1 / condition, n)) @ turn.T
        scale = 10.0 ** rng.uniform(-2, 2, n)
        gram = (gram + gram.T) * scale * scale[:, None]
        data = {"cross": rng.normal(size=(n, 2))} if seed % 2 else {"dense_weights": rng.normal(size=(n, 2))}
        problem = Problem(gram, keep=int(rng.integers(1, n)), **data)
        tree = ProofTree.of(problem)
        without, with_it = tree.branch(0, int(rng.integers(n)))
        tree.close_enumerated(without)
        free = np.flatnonzero(~tree.state(with_it)[1])
        least = np.linalg.eigvalsh(gram * np.outer(1 / scale, 1 / scale))[0] * scale[free] ** 2
        if seed % 3 == 0:
            tree.close_enumerated(with_it)
        else:
            blocks = [np.abs(least) * 0.5]
            tree.close(with_it, relaxation=tree.relax(with_it, rng.uniform(0.1, 1, n - 1), blocks))
        report = Certificate.of(problem, tree, bound=-1e300).check()
        exact_gram, exact_cross = problem.gram.tolist(), problem.cross.tolist()
        full = explained(exact_gram, exact_cross, tuple(range(n)))
        best = min(
            full - explained(exact_gram, exact_cross, rows)
            for rows in itertools.combinations(range(n), problem.keep)
        )
        assert report.bound == -np.inf or Fraction(report.bound) <= best
        assert report.valid or condition > 1e9


@pytest.mark.parametrize("seed", range(40))
def test_rounding_never_lifts_a_tight_bound_above_the_exact_optimum(seed: int) -> None:
    """Inputs all but independent: D can come so close to the Gram matrix that the bound meets the optimum."""
    rng = np.random.default_rng(seed)
    n, q, coupling = 4, 3, 10.0 ** rng.uniform(-14, -4)
    turn = rng.normal(size=(n, n))
    scale = 10.0 ** rng.uniform(-3, 3, n)
    gram = (np.eye(n) + coupling * (turn + turn.T)) * scale * scale[:, None]
    dense = rng.normal(size=(n, q)) * 10.0 ** rng.uniform(-3, 3, (n, 1))
    problem = Problem(gram, dense_weights=dense, keep=int(rng.integers(1, n)))
    exact_gram, exact_cross = problem.gram.tolist(), problem.cross.tolist()
    full = explained(exact_gram, exact_cross, tuple(range(n)))
    values = {
        rows: full - explained(exact_gram, exact_cross, rows)
        for rows in itertools.combinations(range(n), problem.keep or 0)
    }
    best = min(values, key=values.__getitem__)
    tree, gone = ProofTree.of(problem), ~np.isin(np.arange(n), best)
    if seed % 2:
        least = 1.0 - 10.0 * coupling - 1e-9
        z = np.where(gone, 10.0 ** rng.uniform(-200, -8, n), 1.0)
        relaxation = tree.relax(0, z, [least * problem.gram.diagonal()])
    else:  # of inputs that are all but independent, cross is all but the best Lambda
        lam = problem.cross
        form = np.linalg.inv(problem.gram) * (lam @ lam.T)
        delta = np.abs(form).sum(axis=1) * (1 + 1e-12)
        relaxation = tree.relax_dual(0, gone.astype(float), delta, lam)
    tree.close(0, relaxation=relaxation)
    report = Certificate.of(problem, tree, bound=-1e300).check()
    assert report.valid
    assert Fraction(report.bound) <= values[best]
    assert report.bound >= float(values[best]) * (1 - 1e-6) - 1e3 * coupling * float(full)
