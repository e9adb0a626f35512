"""Errors: one family, each member also the builtin a caller already catches."""

from __future__ import annotations

import pickle

import pytest

from osscar_opt import errors

BUILTIN = {
    "InputError": ValueError,
    "NotPositiveDefiniteError": ValueError,
    "InfeasibleError": ValueError,
    "OptionError": TypeError,
    "UnknownMethodError": LookupError,
    "CapabilityError": NotImplementedError,
    "UnavailableError": ImportError,
    "FormatError": ValueError,
    "LayerError": ValueError,
    "SolveAllError": RuntimeError,
    "SolverError": RuntimeError,
}


def test_all_are_listed() -> None:
    assert set(errors.__all__) == {*BUILTIN, "OsscarError"}


@pytest.mark.parametrize("name", BUILTIN)
def test_each_is_one_of_the_family_and_the_builtin(name: str) -> None:
    error = getattr(errors, name)("What is wrong.")
    assert isinstance(error, errors.OsscarError)
    assert isinstance(error, BUILTIN[name])
    assert str(error) == "What is wrong."


def test_the_suggested_damping_survives_pickling() -> None:
    error = errors.NotPositiveDefiniteError("Not so.", suggested_damping=0.25)
    back = pickle.loads(pickle.dumps(error))
    assert back.suggested_damping == 0.25
    assert str(back) == "Not so."
