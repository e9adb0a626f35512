"""Certificates tampered with: every change is noticed, and with all sums recomputed no false claim gets through.

What is false is judged by enumeration. Files are taken apart and put together here by code of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_certificates import all_values, feasible, made, slack, value_of

from osscar_opt.certificates import check

CODES = {"F64": "<f8", "I64": "<i8", "BOOL": "?", "F32": "<f4", "U8": "u1"}
NAMES = {np.dtype(kind): code for code, kind in CODES.items()}
File = tuple[dict[str, str], dict[str, np.ndarray]]


def taken_apart(raw: bytes) -> File:
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    meta = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        piece = data[slice(*entry["data_offsets"])]
        arrays[name] = np.frombuffer(piece, CODES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return meta, arrays


def put_together(meta: dict[str, str], arrays: dict[str, np.ndarray], **header_changes: Any) -> bytes:
    """The file, with sums and seal as they should be."""
    pieces = {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    sums = {name: hashlib.sha256(piece).hexdigest() for name, piece in pieces.items()}
    header: dict[str, Any] = {"__metadata__": {**meta, "sha256": json.dumps(sums), "seal": "0" * 64}}
    at = 0
    for name, piece in pieces.items():
        entry = {"dtype": NAMES[arrays[name].dtype], "shape": list(arrays[name].shape)}
        header[name] = {**entry, "data_offsets": [at, at + len(piece)]}
        at += len(piece)
    header |= header_changes
    text = json.dumps(header).encode()
    seal = hashlib.sha256(struct.pack("<Q", len(text)) + text).hexdigest()
    text = text.replace(b"0" * 64, seal.encode())
    return struct.pack("<Q", len(text)) + text + b"".join(pieces.values())


def sharp(seed: int) -> bytes:
    """A valid certificate that claims all it proves; every second one proves an optimum."""
    _, _, proof = made(seed, n=int(np.random.default_rng(seed).integers(2, 6)), tight=seed % 2 == 0)
    certificate = proof.certificate
    report = check(certificate.claiming(bound=-1e300, support=certificate.support))
    assert report.valid
    bound = report.bound if np.isfinite(report.bound) else 1e6
    return certificate.claiming(bound=bound, support=certificate.support, value=report.value).to_bytes()


# ------------------------------------------------------------------------------------------------- any change


def test_put_together_is_what_the_library_reads() -> None:
    raw = sharp(1)
    assert check(raw).valid
    assert check(put_together(*taken_apart(raw))).valid


@pytest.mark.parametrize("seed", range(6))
def test_any_changed_byte_is_refused(seed: int) -> None:
    rng, raw = np.random.default_rng(seed), sharp(seed)
    for at in rng.choice(len(raw), 60, replace=False):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << int(rng.integers(8))
        report = check(bytes(damaged))
        assert not report.valid
        assert len(report.reasons) == 1
        assert "evaluated" not in report.reasons[0]


@pytest.mark.parametrize("cut", [0, 4, 8, 200, -1, -8])
def test_cut_or_prolonged_files_are_refused(cut: int) -> None:
    raw = sharp(2)
    assert not check(raw[:cut]).valid
    assert not check(raw + b"\0" * abs(cut or 1)).valid


# --------------------------------------------------------------------------------- changes with sums recomputed


def pick(rng: np.random.Generator, array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(rng.integers(size)) for size in array.shape)


def change_tree(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    at, n = int(rng.integers(len(a["tree"]))), len(a["always_keep"])
    how = str(rng.choice(["drop", "double", "group", "kind", "cite", "place", "swap", "wild", "dual"]))
    if how in ("drop", "double"):
        for name in ("tree", "cites"):
            a[name] = np.delete(a[name], at) if how == "drop" else np.insert(a[name], at, a[name][at])
    elif how == "group":
        a["tree"][at] = rng.integers(n)
    elif how == "kind":
        a["tree"][at] = -rng.integers(1, 6)
        if rng.random() < 0.7:
            a["cites"][at] = -1
    elif how == "cite":
        a["cites"][at] = rng.integers(-1, len(a["relaxed_at"]) + 1)
    elif how == "place" and len(a["relaxed_at"]):
        a["relaxed_at"][pick(rng, a["relaxed_at"])] = rng.integers(len(a["tree"]))
    elif how == "dual" and len(a["dual"]):
        a["dual"][pick(rng, a["dual"])] ^= True
    elif how == "swap":
        other = int(rng.integers(len(a["tree"])))
        for name in ("tree", "cites"):
            a[name][[at, other]] = a[name][[other, at]]
    else:
        name = str(rng.choice(["tree", "cites", "relaxed_at", "group_of_row"]))
        if a[name].size:
            a[name][pick(rng, a[name])] = rng.choice([-(2**63), 2**63 - 1, -6, 2**40, n])


def change_relaxation(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    factor = float(rng.choice([1e-3, 0.5, 0.999, 1.0001, 1.01, 1.5, 10.0, -1.0, 0.0]))
    name = str(rng.choice(["d", "d", "z", "z", "y", "delta", "delta", "lam", "lam", "prices", "directions"]))
    if name not in a or a[name].size == 0:
        return
    how = rng.random()
    if how < 0.3:
        a[name] *= factor
    elif how < 0.8:
        a[name][pick(rng, a[name])] *= factor
    elif name in ("y", "z"):
        a[name] = rng.uniform(0, 1, a[name].shape)
    else:
        a[name] = rng.permutation(a[name].ravel()).reshape(a[name].shape)


def change_claim(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    claim = json.loads(meta["claim"])
    how = str(rng.choice(["bound", "bound", "value", "support"]))
    if how == "support" and "support" in a and a["support"].size:
        at = pick(rng, a["support"])
        a["support"][at] = not a["support"][at]
    elif claim.get(how) is not None:
        size = 10.0 ** rng.uniform(-12, 1)
        claim[how] += rng.choice([-1, 1]) * size * (abs(claim[how]) + rng.choice([0.0, 1e-3]))
    if rng.random() < 0.1:
        claim["value"] = None
    meta["claim"] = json.dumps(claim)


def nudge(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    name = str(rng.choice([name for name in a if a[name].size]))
    at = pick(rng, a[name])
    if a[name].dtype == bool:
        a[name][at] = not a[name][at]
    elif a[name].dtype.kind == "i":
        a[name][at] += rng.choice([-1, 1])
    else:
        a[name][at] *= 1 + rng.choice([-1, 1]) * 10.0 ** rng.uniform(-15, 1)


def change_problem(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    how = str(rng.choice(["limit", "usage", "masks", "level", "groups", "cross", "gram", "sizes"]))
    if how == "masks":
        name = str(rng.choice(["always_keep", "always_remove"]))
        at = pick(rng, a[name])
        a[name][at] = not a[name][at]
    elif how == "level":
        for name in ("base", "constant"):
            if (number := json.loads(meta[name])) is not None:
                meta[name] = json.dumps(number + float(rng.normal()))
    elif how == "groups":
        a["group_of_row"] = rng.permutation(a["group_of_row"])
    elif how == "sizes":
        sizes = json.loads(meta["sizes"])
        sizes[str(rng.choice(list(sizes)))] += int(rng.choice([-1, 1, 10**9, 10**30]))
        meta["sizes"] = json.dumps(sizes)
    elif a[how].size:
        a[how][pick(rng, a[how])] += rng.normal() * 10.0 ** rng.uniform(-9, 2)


def malform(rng: np.random.Generator, meta: dict[str, str], a: dict[str, np.ndarray]) -> None:
    name = str(rng.choice(list(a)))
    other = str(rng.choice(list(a)))
    how = str(rng.choice(["nan", "type", "shape", "cut", "lose", "swap", "long", "meta", "ones"]))
    if how == "nan" and a[name].dtype.kind == "f" and a[name].size:
        a[name][pick(rng, a[name])] = rng.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324])
    elif how == "type":
        with np.errstate(all="ignore"):
            a[name] = a[name].astype(rng.choice(["<f8", "<f4", "<i8", "?"]))
    elif how == "shape":
        a[name] = a[name].reshape(a[name].shape[::-1]) if a[name].ndim == 2 else a[name].reshape(1, -1)
    elif how == "cut":
        a[name] = a[name][: rng.integers(len(a[name]) + 1)]
    elif how == "lose":
        del a[name]
    elif how == "swap":
        a[name], a[other] = a[other], a[name]
    elif how == "long":
        a[name] = np.concatenate([a[name], a[name]])
    elif how == "meta":
        key = str(rng.choice([key for key in meta if key not in ("sha256", "seal")]))
        meta[key] = str(
            rng.choice(["", "null", "{}", "[1]", "1e999", "NaN", '{"a":1,"a":2}', "[" * 5000, "-3", "\ud800"])
        )
    elif how == "ones" and a[name].size:
        a[name][...] = 1


Change = Callable[[np.random.Generator, dict[str, str], dict[str, np.ndarray]], None]
CHANGES: list[Change] = [change_tree, change_relaxation, change_claim, nudge, change_problem, malform]


def problem_of(meta: dict[str, str], a: dict[str, np.ndarray]) -> Any:
    """The problem in a file, as the enumeration takes it."""
    p = len(a["group_of_row"])
    gram = np.zeros((p, p))
    gram[np.triu_indices(p)] = a["gram"]
    base, constant = json.loads(meta["base"]), json.loads(meta["constant"])
    return SimpleNamespace(
        gram=gram + np.triu(gram, 1).T,
        cross=a["cross"],
        groups=SimpleNamespace(group_of_row=a["group_of_row"]),
        limits=SimpleNamespace(usage=a["usage"], limit=a["limit"]),
        always_keep=a["always_keep"],
        always_remove=a["always_remove"],
        base=base,
        constant=constant,
        base_is_given=base is not None,
    )


def assert_no_false_claim(raw: bytes) -> bool:
    """Check a file; whatever the checker accepts must be true. Returns whether it was accepted."""
    report = check(raw)
    assert report.reasons or report.valid
    assert not any("evaluated" in reason for reason in report.reasons), report.reasons
    if not report.valid:
        assert report.proved == "nothing"
        return False
    meta, arrays = taken_apart(raw)
    problem, claim = problem_of(meta, arrays), json.loads(meta["claim"])
    live = np.flatnonzero(problem.gram.diagonal())
    scale = 1 / np.sqrt(problem.gram.diagonal()[live])
    assert np.linalg.eigvalsh(problem.gram[np.ix_(live, live)] * scale * scale[:, None]).min(initial=1) > 0
    values = all_values(problem)
    best = min(values.values(), default=np.inf)
    assert (report.proved == "infeasible") <= (not values)
    if values:
        assert claim["bound"] <= best + slack(problem, best)
        assert report.bound <= best + slack(problem, best)
    if "support" in arrays:
        value = value_of(problem, arrays["support"])
        assert feasible(problem, arrays["support"])
        assert claim["value"] is None or abs(claim["value"] - value) <= slack(problem, value)
        if report.proved == "optimal":
            assert value <= best + 1.1e-6 * abs(best) + slack(problem, best)
    return True


def mutated(rng: np.random.Generator, raw: bytes) -> bytes:
    meta, arrays = taken_apart(raw)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        with contextlib.suppress(Exception):  # an earlier change took away what this one works on
            CHANGES[int(rng.integers(len(CHANGES)))](rng, meta, arrays)
    return put_together(meta, arrays)


def run(seed: int, bases: int, each: int) -> int:
    accepted = 0
    for base in range(bases):
        rng, raw = np.random.default_rng([seed, base]), sharp(seed * 1000 + base)
        assert assert_no_false_claim(raw)
        accepted += sum(assert_no_false_claim(mutated(rng, raw)) for _ in range(each))
    return accepted


@pytest.mark.parametrize("seed", range(6))
def test_no_false_claim_is_accepted(seed: int) -> None:
    accepted = run(seed, bases=5, each=12)
    assert accepted < 5 * 12  # some changes are harmless; most are not


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_no_false_claim_is_accepted_of_ten_thousand(seed: int) -> None:
    assert run(seed, bases=20, each=25) > 0
