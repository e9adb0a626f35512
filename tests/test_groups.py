"""Groups: labels, sizes, rows, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from osscar_opt import Groups
from osscar_opt.errors import InputError


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (1, [0, 1, 2, 3, 4, 5]),
        (3, [0, 0, 0, 1, 1, 1]),
        (np.int32(6), [0, 0, 0, 0, 0, 0]),
        ([2, 0, 1, 1, 0, 2], [2, 0, 1, 1, 0, 2]),
        (np.array([0, 0, 1, 1, 2, 2], dtype=np.uint8), [0, 0, 1, 1, 2, 2]),
    ],
)
def test_coerce_gives_the_labels_a_caller_means(spec: object, labels: list[int]) -> None:
    groups = Groups.coerce(spec, 6)
    assert groups.group_of_row.tolist() == labels
    assert groups.group_of_row.dtype == np.int64
    assert Groups.coerce(groups, 6) is groups


def test_rows_and_masks_agree_with_the_labels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [1, 4, 2, 3, 3]))
    groups = Groups(labels)
    assert groups.n == 5
    assert groups.p == 13
    assert groups.sizes.tolist() == [1, 4, 2, 3, 3]
    assert groups.uniform_size is None
    for g in range(5):
        assert groups.rows(g).tolist() == [row for row in range(13) if labels[row] == g]
    support = np.array([True, False, True, False, True])
    assert groups.row_mask(support).tolist() == [bool(support[label]) for label in labels]
    values = rng.standard_normal(13)
    np.testing.assert_allclose(groups.total(values), [values[labels == g].sum() for g in range(5)])


def test_subset_renumbers_in_order() -> None:
    groups = Groups([3, 0, 1, 3, 2, 1])
    left = groups.subset(np.array([False, True, False, True]))
    assert left.group_of_row.tolist() == [1, 0, 1, 0]
    assert groups.subset(np.zeros(4, dtype=bool)).n == 0


def test_labels_are_read_only_and_survive_pickling() -> None:
    mine = np.array([0, 1, 1])
    groups = Groups(mine)
    mine[0] = 1
    for same in (groups, pickle.loads(pickle.dumps(groups)), copy.deepcopy(groups)):
        assert same.group_of_row.tolist() == [0, 1, 1]
        assert same == groups
        assert hash(same) == hash(groups)
        with pytest.raises(ValueError, match="read-only"):
            same.group_of_row[0] = 1
    assert groups != Groups([0, 1, 2])
    assert groups != "groups"


def test_repr_says_how_many_and_how_large() -> None:
    assert repr(Groups.coerce(32, 384)) == "Groups(n=12, sizes=32)"
    assert repr(Groups([0, 0, 1])) == "Groups(n=2, sizes=1..2)"
    assert repr(Groups(np.zeros(0, dtype=int))) == "Groups(n=0)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (4, "groups = 4 does not divide the 6 rows"),
        (0, "groups = 0 does not divide"),
        (-2, "groups = -2 does not divide"),
        (1.5, "neither a group size nor an array"),
        ("heads", "neither a group size nor an array"),
        ([0, 1, 2], "label 3 rows, but gram has 6"),
        ([0, 0, 1, 1, 3, 3], "no row belongs to group 2"),
        ([0, 0, 1, 1, 2, -1], "range from -1 to 2"),
        ([0, 0, 1, 1, 2, 6], "range from 0 to 6"),
        ([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], "must be integers"),
        ([[0, 1, 2], [0, 1, 2]], "1-d array"),
    ],
)
def test_bad_groups_are_refused_in_a_sentence(spec: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Groups.coerce(spec, 6)


def test_rows_of_a_group_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no group 2: groups are 0\.\.1"):
        Groups([0, 1]).rows(2)
