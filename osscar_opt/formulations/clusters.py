r"""How many examples of each cluster of a data set stay, under a budget of examples.

Density-based pruning (A. Abbas, E. Rusak, K. Tirumala, W. Brendel, K. Chaudhuri, A. S. Morcos, *Effective pruning of
web-scale datasets based on complexity of concept clusters*, ICLR 2024, arXiv 2401.04578) embeds the examples, clusters
the embeddings and keeps more of complex clusters.  With distances d = 1 - cosine,

.. math:: C_j = d_{\mathrm{inter},j} \cdot d_{\mathrm{intra},j}, \qquad
          P_j = \frac{\exp(C_j / \tau)}{\sum_i \exp(C_i / \tau)},

where d_intra is the mean distance of a cluster's examples to its centroid and d_inter that of its centroid to the l
nearest other centroids, cluster j is to have t_j = P_j B of the B examples.  It may hold fewer.  So the counts solve

.. math:: \min_x \tfrac12 \sum_j (x_j - t_j)^2 \quad\text{with}\quad \sum_j x_j = B,\;\; 1 \le x_j \le M_j ,

with M_j the size of cluster j.  The paper solves this quadratic program in real numbers and rounds (`rounded_counts`),
after which the counts may miss the budget.  In whole numbers it is a separable convex resource allocation, solved
exactly by marginal steps (`osscar_opt.formulations.counts`).  Within a cluster the examples farthest from the
centroid stay.

The authors' code (github.com/amro-kamal/effective_pruning) lets a cluster of M_j examples go down to M_j - 1 even where
`least` asks for more; here all of it stays then.  The temperature is to be chosen: it sets how far counts may differ.

Left out: removal of duplicates before clustering, the encoder, and the clustering itself; bring labels of your own.
"""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import ArrayLike, BoolArray, FloatArray, IntArray
from osscar_opt.errors import InfeasibleError, InputError
from osscar_opt.formulations.counts import CountProblem

__all__ = ["cluster_problem", "complexities", "density_targets", "hardest_examples", "rounded_counts"]


def complexities(embeddings: ArrayLike, labels: ArrayLike, *, neighbours: int = 20) -> FloatArray:
    """C_j = d_inter * d_intra of each cluster.

    Parameters
    ----------
    embeddings : (N, d) array
        None of them zero.  They are scaled to unit length, as for spherical k-means.
    labels : (N,) array of int
        Cluster of each example, 0..n-1 without gaps.
    neighbours : int, optional
        l, the number of nearest other centroids; all of them if there are fewer.

    Examples
    --------
    >>> complexities([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]], [0, 0, 1, 1]).round(3)
    array([0.5, 0.5])
    """
    points, clusters = _unit(embeddings), _labels(labels)
    if len(points) != len(clusters):
        raise InputError(
            f"there are {len(points)} embeddings and {len(clusters)} labels: one for each example."
        )
    if neighbours < 1:
        raise InputError(f"neighbours = {neighbours} must be at least 1.")
    centroids = _centroids(points, clusters)
    sizes = np.bincount(clusters)
    if len(sizes) < 2:
        raise InputError("there is only one cluster: distances between clusters need two.")
    apart = 1.0 - np.einsum("ij,ij->i", points, centroids[clusters])
    intra = np.bincount(clusters, weights=apart) / sizes
    between = 1.0 - centroids @ centroids.T
    np.fill_diagonal(between, np.inf)
    nearest = np.sort(between, axis=1)[:, : min(neighbours, len(sizes) - 1)]
    return np.asarray(nearest.mean(axis=1) * intra)


def density_targets(complexity: ArrayLike, budget: int, *, temperature: float = 0.1) -> FloatArray:
    """t_j = P_j B, the counts that the clusters would have if they were large enough.

    Examples
    --------
    >>> density_targets([0.2, 0.2], 10)
    array([5., 5.])
    """
    if not temperature > 0.0:
        raise InputError(f"temperature = {temperature} must be positive.")
    scaled = np.asarray(complexity, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(budget * weights / weights.sum())


def cluster_problem(targets: ArrayLike, sizes: ArrayLike, budget: int, *, least: int = 1) -> CountProblem:
    """The integer program over the counts, its curves 1/2 (x - t_j)^2, to be solved exactly.

    Parameters
    ----------
    targets : (n,) array
        What each cluster should have.
    sizes : (n,) array of int
        What each cluster holds.
    budget : int
        How many examples stay, in all.
    least : int, optional
        How many of each cluster stay at least, or all of it if it holds fewer.

    Raises
    ------
    InfeasibleError
        If there are fewer examples than the budget, or more clusters than it can keep.

    Examples
    --------
    >>> problem = cluster_problem([2.4, 2.4, 1.2], [9, 9, 9], budget=6)
    >>> problem.solve().counts, problem.solve().status.value
    (array([3, 2, 1]), 'optimal')
    """
    wanted, size = _targets_and_sizes(targets, sizes)
    curves = []
    for t, m in zip(wanted, size, strict=True):
        curve = 0.5 * (np.arange(m + 1) - t) ** 2
        curve[: min(least, m)] = np.inf
        curves.append(curve)
    return CountProblem(curves, budget, exactly=True, name="clusters")


def rounded_counts(targets: ArrayLike, sizes: ArrayLike, budget: int, *, least: int = 1) -> IntArray:
    """Counts as published: the quadratic program in real numbers, then each count rounded by itself.

    Its optimum is x_j = t_j + s clipped to the limits, with the one shift s that spends the budget.  After rounding
    the counts may sum to more or less than the budget.

    Examples
    --------
    >>> rounded_counts([2.4, 2.4, 1.2], [9, 9, 9], budget=6)  # five, not six
    array([2, 2, 1])
    """
    wanted, size = _targets_and_sizes(targets, sizes)
    low = np.minimum(least, size)
    if not low.sum() <= budget <= size.sum():
        raise InfeasibleError(f"between {low.sum()} and {size.sum()} examples can stay, not {budget}.")
    # The sum of the clipped counts is piecewise linear in the shift, with corners where a count meets a limit.
    corners = np.unique(np.concatenate([low - wanted, size - wanted]))
    sums = np.clip(wanted + corners[:, None], low, size).sum(axis=1)
    shift = np.interp(budget, sums, corners)
    return np.asarray(np.rint(np.clip(wanted + shift, low, size)), dtype=np.int64)


def hardest_examples(embeddings: ArrayLike, labels: ArrayLike, counts: ArrayLike) -> BoolArray:
    """Which examples stay: of each cluster so many, those farthest from its centroid.

    Returns
    -------
    (N,) mask

    Examples
    --------
    >>> hardest_examples([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0]], [0, 0, 0, 1], [1, 1])
    array([False, False,  True,  True])
    """
    points, clusters = _unit(embeddings), _labels(labels)
    centroids = _centroids(points, clusters)
    apart = 1.0 - np.einsum("ij,ij->i", points, centroids[clusters])
    wanted = np.asarray(counts)
    if wanted.shape != (len(centroids),):
        raise InputError(f"counts must be {len(centroids)} numbers, one for each cluster.")
    stays = np.zeros(len(points), dtype=bool)
    for cluster, count in enumerate(wanted):
        members = np.flatnonzero(clusters == cluster)
        if not 0 <= count <= len(members):
            raise InputError(f"cluster {cluster} holds {len(members)} examples: {count} of them cannot stay.")
        stays[members[np.argsort(-apart[members], kind="stable")[:count]]] = True
    return stays


def _unit(embeddings: ArrayLike) -> FloatArray:
    points = np.asarray(embeddings, dtype=np.float64)
    if points.ndim != 2 or not np.all(np.isfinite(points)):
        raise InputError("embeddings must be a matrix of finite numbers, one row for each example.")
    length = np.linalg.norm(points, axis=1, keepdims=True)
    if np.any(length == 0.0):
        raise InputError("an embedding is zero, and has no direction: leave that example out.")
    return np.asarray(points / length)


def _labels(labels: ArrayLike) -> IntArray:
    clusters = np.asarray(labels)
    if clusters.ndim != 1 or not np.issubdtype(clusters.dtype, np.integer) or clusters.size == 0:
        raise InputError("labels must be whole numbers, one for each example.")
    if clusters.min() < 0 or not np.bincount(clusters).all():
        raise InputError("labels must be 0..n-1 without gaps: no cluster may be empty.")
    return clusters.astype(np.int64)


def _centroids(points: FloatArray, clusters: IntArray) -> FloatArray:
    sums = np.zeros((int(clusters.max()) + 1, points.shape[1]))
    np.add.at(sums, clusters, points)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(np.divide(sums, length, out=np.zeros_like(sums), where=length > 0.0))


def _targets_and_sizes(targets: ArrayLike, sizes: ArrayLike) -> tuple[FloatArray, IntArray]:
    wanted, size = np.asarray(targets, dtype=np.float64), np.asarray(sizes)
    if wanted.ndim != 1 or wanted.shape != size.shape or not np.all(np.isfinite(wanted)):
        raise InputError("targets and sizes must be one number for each cluster.")
    if not np.issubdtype(size.dtype, np.integer) or np.any(size < 1):
        raise InputError("sizes must be whole numbers, and no cluster may be empty.")
    return wanted, size.astype(np.int64)
