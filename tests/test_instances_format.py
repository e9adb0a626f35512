"""Instance files: what is written comes back, and what is not an instance is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given

from osscar_opt import Problem
from osscar_opt.errors import FormatError, InputError, NotPositiveDefiniteError, OsscarError
from osscar_opt.instances import FAMILIES, instance_info, load, random_instance, save
from osscar_opt.instances.container import replacing
from osscar_opt.instances.format import _unpacked
from osscar_opt.instances.sealed import SealedFile

GOLDEN = Path(__file__).parent / "golden"
PAGE = Path(__file__).parents[1] / "docs" / "instance-format.md"


def small(**changes: Any) -> Problem:
    """Everything an instance can hold: p = 5 rows, q = 2 columns, n = 3 groups of unequal size."""
    rng = np.random.default_rng(5)
    inputs = rng.standard_normal((12, 5))
    settings = {
        "cross": rng.standard_normal((5, 2)),
        "dense_weights": rng.standard_normal((5, 2)),
        "groups": [2, 0, 0, 1, 2],
        "keep": 2,
        "constant": 0.1 + 0.2,
        "costs": [1.0, 0.1, 3.0],
        "budget": 3.3,
        "always_keep": [1],
        "always_remove": [2],
        "blocks": [0, 1, 0],
        "block_keep": [1, 1],
        "name": "small – 小",
        "provenance": {"model": "none", "tokens": 12, "nested": [1, {"a": None}]},
    }
    return Problem(inputs.T @ inputs / 12 + 0.1 * np.eye(5), **{**settings, **changes})


def assert_same(a: Problem, b: Problem) -> None:
    for name in (
        "gram",
        "cross",
        "dense_weights",
        "costs",
        "always_keep",
        "always_remove",
        "blocks",
        "block_keep",
    ):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype, name
            assert x.tobytes() == y.tobytes(), name
    for name in (
        "keep",
        "budget",
        "constant",
        "base",
        "name",
        "provenance",
        "groups",
        "dense_is_optimal",
        "hash",
    ):
        assert getattr(a, name) == getattr(b, name), name


def reseal(
    raw: bytes, *, metadata: dict[str, Any] | None = None, arrays: dict[str, Any] | None = None
) -> bytes:
    """A forged file: changes applied, every sum and the seal made right again.

    The container is written by the safetensors package and the seal computed as the page says: neither is our code.
    """
    tensors = dict(safetensors.numpy.load(raw))
    length = int.from_bytes(raw[:8], "little")
    meta = json.loads(raw[8 : 8 + length])["__metadata__"]
    for target, changes in ((meta, metadata or {}), (tensors, arrays or {})):
        for name, value in changes.items():
            if value is None:
                del target[name]
            else:
                target[name] = value
    if "sha256" not in (metadata or {}):
        sums = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
        meta["sha256"] = json.dumps(sums)
    meta.pop("seal", None)
    codes = {
        "float64": "F64",
        "float32": "F32",
        "int64": "I64",
        "bool": "BOOL",
        "int32": "I32",
        "uint8": "U8",
    }
    meta["seal"] = seal_of(meta, {name: (codes[a.dtype.name], a.shape) for name, a in tensors.items()})
    return safetensors.numpy.save(tensors, meta)


def seal_of(meta: dict[str, str], arrays: dict[str, Any]) -> str:
    texts = [text for key in sorted(meta) for text in (key, meta[key])]
    for name, (code, shape) in sorted(arrays.items()):
        texts += [name, code, "x".join(map(str, shape))]
    sealed = b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts)
    return hashlib.sha256(sealed).hexdigest()


def reader_of_the_page() -> Any:
    """The independent reader printed in docs/instance-format.md."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    return space["read_instance"]


# ---------------------------------------------------------------------------------------------------- round trips


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    problem = small()
    save(problem, tmp_path / "a.safetensors", keeps=[2, 1])
    assert_same(problem, load(tmp_path / "a.safetensors"))
    info = instance_info(tmp_path / "a.safetensors")
    assert (info.p, info.q, info.n, info.keep, info.keeps, info.dtype) == (5, 2, 3, 2, (1, 2), "float64")
    assert (info.hash, info.name, info.provenance) == (problem.hash, problem.name, problem.provenance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group_sizes", [None, 3])
def test_families_come_back(family: str, group_sizes: int | None, tmp_path: Path) -> None:
    problem = random_instance(11, family, n=7, group_sizes=group_sizes, q=4)
    problem.save(tmp_path / "a.safetensors")
    assert_same(problem, load(tmp_path / "a.safetensors"))


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(["base", "constant"]),
    st.floats(-1e300, 1e300),
    st.text(max_size=12),
    st.dictionaries(
        st.text(max_size=4),
        st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    ),
    st.integers(0, 2**32),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    p: int,
    q: int,
    level: str,
    constant: float,
    name: str,
    provenance: dict[str, Any],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((2 * p, p)) * 10.0 ** rng.integers(-6, 6, size=p)
    groups = np.unique(rng.integers(0, p, size=p), return_inverse=True)[1]
    problem = Problem(
        inputs.T @ inputs + np.diag(np.diag(inputs.T @ inputs)),
        rng.standard_normal((p, q)),
        groups=groups,
        keep=int(rng.integers(0, groups.max() + 2)),
        constant=constant if level == "constant" else None,
        name=name,
        provenance=provenance,
    )
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    save(problem, path)
    assert_same(problem, load(path))


def test_every_entry_finds_its_place(tmp_path: Path) -> None:
    gram = np.diag(np.arange(1.0, 1101.0))
    gram[0, 1050] = gram[1050, 0] = 0.5
    gram[600, 20] = gram[20, 600] = -0.5
    problem = Problem(gram, np.ones((1100, 1)))
    save(problem, tmp_path / "a.safetensors")
    assert_same(problem, load(tmp_path / "a.safetensors"))


def test_dead_inputs_and_a_base_that_is_not_zero(tmp_path: Path) -> None:
    gram = np.diag([1.0, 0.0, 2.0])
    problem = Problem(gram, np.array([[1.0], [0.0], [3.0]]), keep=1)
    shifted = Problem._trusted(**{**problem._state(), "_level": ("base", 0.7)})  # as presolve makes them
    save(shifted, tmp_path / "a.safetensors")
    assert_same(shifted, load(tmp_path / "a.safetensors"))
    assert load(tmp_path / "a.safetensors").base == 0.7


def test_costs_and_blocks_without_limits(tmp_path: Path) -> None:
    problem = small(budget=None, block_keep=None, always_keep=None, always_remove=None, keep=None)
    save(problem, tmp_path / "a.safetensors")
    assert_same(problem, load(tmp_path / "a.safetensors"))


def test_float32_is_a_neighbouring_problem(tmp_path: Path) -> None:
    problem = random_instance(1, "correlated", n=20, q=3)
    save(problem, tmp_path / "a.safetensors", dtype="float32")
    read = load(tmp_path / "a.safetensors")
    assert read.gram.dtype == np.float64
    assert np.array_equal(read.gram, problem.gram.astype(np.float32))
    assert read.hash != problem.hash
    assert instance_info(tmp_path / "a.safetensors").dtype == "float32"
    support = np.arange(20) < 10
    assert read.value(support) == pytest.approx(problem.value(support), rel=1e-4)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (random_instance(0, "ill_conditioned", n=9), "not positive definite"),
        (Problem([[1e60]], [[1e60]]), "beyond float32"),
    ],
)
def test_float32_that_would_not_load_is_not_written(problem: Problem, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        save(problem, tmp_path / "a.safetensors", dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_same_problem_same_file(tmp_path: Path) -> None:
    """But for the order of the metadata, which means nothing."""
    save(small(), tmp_path / "a.safetensors")
    save(load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    one, two = (header_of((tmp_path / name).read_bytes()) for name in ("a.safetensors", "b.safetensors"))
    assert one == two
    assert list(one[0]) == list(two[0])


# --------------------------------------------------------------------------------------- agreement with other readers


def test_the_reader_of_the_page_agrees(tmp_path: Path) -> None:
    problem = small()
    save(problem, tmp_path / "a.safetensors")
    gram, arrays, meta = reader_of_the_page()(tmp_path / "a.safetensors")
    assert np.array_equal(gram, problem.gram)
    assert np.array_equal(arrays["cross"], problem.cross)
    assert np.array_equal(arrays["always_keep"], problem.always_keep)
    assert meta == {
        "sizes": {"rows": 5, "columns": 2, "groups": 3},
        "keep": 2,
        "budget": 3.3,
        "constant": problem.constant,
        "base": None,
    }


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("instance-1.0-*.safetensors")), ids=lambda path: path.stem
)
def test_golden_instances(path: Path) -> None:
    """Files written when version 1.0 was new; the sums were noted down then."""
    noted = json.loads((GOLDEN / "values.json").read_text(encoding="utf-8"))[path.name]
    problem = load(path)
    gram, arrays, meta = reader_of_the_page()(path)
    assert np.array_equal(gram, problem.gram)
    assert np.array_equal(arrays["group_of_row"], problem.groups.group_of_row)
    assert meta["keep"] == problem.keep == noted["keep"]
    assert problem.hash == noted["hash"]
    assert problem.value(np.array(noted["support"])) == pytest.approx(noted["value"], rel=1e-12)


def test_the_safetensors_package_reads_our_files(tmp_path: Path) -> None:
    problem = small()
    save(problem, tmp_path / "a.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(tensors["gram"], problem.gram[np.triu_indices(5)])
    assert np.array_equal(tensors["cross"], problem.cross)
    assert tensors["always_keep"].dtype == bool
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata()["format"] == "osscar-opt/instance"


def test_we_read_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(reseal((tmp_path / "a.safetensors").read_bytes()))
    assert_same(small(), load(tmp_path / "b.safetensors"))


def test_arrays_are_aligned(tmp_path: Path) -> None:
    save(small(), tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0
    header, _ = header_of(raw)
    del header["__metadata__"]
    for spec in header.values():
        assert spec["data_offsets"][0] % {"F64": 8, "I64": 8, "BOOL": 1}[spec["dtype"]] == 0


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(path: Path, match: str | None = None) -> str:
    with pytest.raises(FormatError, match=match) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "No such file")
    refused(tmp_path, "not a regular file")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "too few")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")  # and does not wait for a writer
    with pytest.raises(FormatError):
        load("a\0b")
    (tmp_path / "text").write_text("hello, this is not an instance at all")
    refused(tmp_path / "text", "not a safetensors file")


def test_other_safetensors_files(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"weight": np.ones((2, 3))}, tmp_path / "a")
    refused(tmp_path / "a", "says nothing of its format")
    safetensors.numpy.save_file({"weight": np.ones((2, 3))}, tmp_path / "b", {"format": "pt"})
    refused(tmp_path / "b", "of format 'pt'")


@pytest.mark.parametrize(
    ("metadata", "arrays", "match"),
    [
        ({"version": "2.0"}, {}, "version 2.0"),
        ({"version": "0.9"}, {}, "version 0.9"),
        ({"version": "1"}, {}, "major.minor"),
        ({"version": "1.-1"}, {}, "major.minor"),
        ({"version": None}, {}, "major.minor"),
        ({"sizes": '{"rows": 6, "columns": 2, "groups": 3}'}, {}, "'gram' has shape|shape"),
        ({"sizes": '{"rows": 5, "columns": 3, "groups": 3}'}, {}, "shape"),
        ({"sizes": '{"rows": 5, "columns": 2, "groups": 4}'}, {}, "shape"),
        ({"sizes": '{"rows": true, "columns": 2, "groups": 3}'}, {}, "sizes"),
        ({"sizes": '{"rows": 5.0, "columns": 2, "groups": 3}'}, {}, "sizes"),
        ({"sizes": '{"rows": 5, "rows": 5, "columns": 2, "groups": 3}'}, {}, "not valid JSON"),
        ({"sizes": "[]"}, {}, "sizes"),
        ({"sizes": None}, {}, "'sizes' is missing"),
        ({"keep": '"2"'}, {}, "keep"),
        ({"keep": "2.0"}, {}, "keep"),
        ({"keep": "-1"}, {}, "keep"),
        ({"keep": None}, {}, "'keep' is missing"),
        ({"keep": "[" * 100_000}, {}, "not valid JSON"),
        ({"keep": "9" * 5000}, {}, "not valid JSON"),
        ({"budget": "NaN"}, {}, "not valid JSON"),
        ({"budget": "1e999"}, {}, "budget"),
        ({"budget": "9" * 400}, {}, "budget"),
        ({"constant": "Infinity"}, {}, "not valid JSON"),
        ({"constant": '"x"'}, {}, "constant"),
        ({"constant": "null"}, {}, "exactly one"),
        ({"base": "0.0"}, {}, "exactly one"),
        ({"keeps": "3"}, {}, "keeps"),
        ({"provenance": "[]"}, {}, "provenance"),
        ({"provenance": "{"}, {}, "not valid JSON"),
        ({"sha256": "{}"}, {}, "sha256"),
        ({"sha256": "[]"}, {}, "sha256"),
        ({}, {"gram": None}, "'gram' is missing"),
        ({}, {"group_of_row": None}, "'group_of_row' is missing"),
        ({}, {"cross": None, "dense_weights": None}, "neither"),
        ({}, {"blocks": None}, "without 'blocks'"),
        ({}, {"costs": None}, "without the array 'costs'"),
        ({}, {"gram": np.ones(14)}, "shape"),
        ({}, {"gram": np.eye(5)}, "shape"),
        ({}, {"gram": np.ones(15, dtype=np.int64)}, "I64"),
        ({}, {"gram": np.ones(15, dtype=np.float32)}, "same type"),
        ({}, {"gram": np.full(15, np.nan)}, "NaN"),
        ({}, {"cross": np.full((5, 2), np.inf)}, "infinite"),
        ({}, {"group_of_row": np.zeros(5, dtype=np.int32)}, "I32"),
        ({}, {"always_keep": np.zeros(3, dtype=np.uint8)}, "U8"),
        ({}, {"always_keep": np.zeros(4, dtype=bool)}, "shape"),
        ({}, {"surprise": np.zeros(4)}, "'surprise' is not part of version 1.0"),
    ],
)
def test_forged(metadata: dict[str, Any], arrays: dict[str, Any], match: str, tmp_path: Path) -> None:
    """Files whose sums and seal are right and whose content is not."""
    save(small(), tmp_path / "a")
    (tmp_path / "b").write_bytes(reseal((tmp_path / "a").read_bytes(), metadata=metadata, arrays=arrays))
    refused(tmp_path / "b", match)


@pytest.mark.parametrize(
    ("metadata", "arrays", "error"),
    [
        ({"keep": "9"}, {}, InputError),
        ({}, {"group_of_row": np.array([0, 0, 2, 2, 0])}, InputError),
        ({}, {"group_of_row": np.array([0, -1, 2, 1, 0])}, InputError),
        ({}, {"group_of_row": np.array([0, 2**62, 2, 1, 0])}, InputError),
        ({}, {"block_keep": np.array([-1, 1])}, InputError),
        ({}, {"block_keep": np.array([1])}, InputError),
        ({}, {"blocks": np.array([0, 2**62, 1])}, InputError),
        ({}, {"costs": np.array([-1.0, 1.0, 1.0])}, InputError),
        ({}, {"gram": np.ones(15)}, NotPositiveDefiniteError),
        ({}, {"gram": -np.ones(15)}, NotPositiveDefiniteError),
        ({"budget": "0.0"}, {}, InputError),
    ],
)
def test_sound_files_that_pose_no_problem(
    metadata: dict[str, Any], arrays: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    save(small(), tmp_path / "a")
    (tmp_path / "b").write_bytes(reseal((tmp_path / "a").read_bytes(), metadata=metadata, arrays=arrays))
    with pytest.raises(error):
        load(tmp_path / "b")


def test_newer_minor_versions_and_free_names(tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    free = {"x_note": np.arange(6, dtype=np.int32).reshape(2, 3)}
    (tmp_path / "b").write_bytes(reseal(raw, arrays=free, metadata={"x_note": "hello", "unheard": "of"}))
    assert_same(small(), load(tmp_path / "b"))
    later = {"version": "1.7"}
    (tmp_path / "b").write_bytes(reseal(raw, metadata=later, arrays={"invented_later": np.arange(3.0)}))
    assert_same(small(), load(tmp_path / "b"))
    assert "invented_later" in instance_info(tmp_path / "b").arrays


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("BF16", [3], 6), ("F8_E4M3", [3], 3), ("F4", [4], 2), ("I32", [2, 0], 0), ("C64", [1], 8)],
)
def test_free_arrays_of_types_that_numpy_has_not(
    dtype: str, shape: list[int], size: int, tmp_path: Path
) -> None:
    save(small(), tmp_path / "a")
    (tmp_path / "b").write_bytes(with_free_array((tmp_path / "a").read_bytes(), dtype, shape, size))
    assert_same(small(), load(tmp_path / "b"))


@pytest.mark.parametrize("shape", [[1] * 70, [0, 1 << 62, 1 << 62]])
def test_a_free_array_of_a_shape_that_numpy_has_not(shape: list[int], tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    size = 8 if shape[0] else 0
    (tmp_path / "b").write_bytes(with_free_array((tmp_path / "a").read_bytes(), "F64", shape, size))
    refused(tmp_path / "b", "shape that numpy cannot hold")


def with_free_array(raw: bytes, dtype: str, shape: list[int], size: int) -> bytes:
    """The file with an array ``x_free`` of that many bytes behind the others, sealed."""
    header, data = header_of(raw)
    meta = header["__metadata__"]
    header["x_free"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
    sums = {**json.loads(meta["sha256"]), "x_free": hashlib.sha256(bytes(size)).hexdigest()}
    meta["sha256"] = json.dumps(sums)
    del meta["seal"]
    declared = {
        name: (spec["dtype"], spec["shape"]) for name, spec in header.items() if name != "__metadata__"
    }
    meta["seal"] = seal_of(meta, declared)
    return with_header(header, data + bytes(size))


def test_masks_hold_zeros_and_ones(tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    two = np.array([0, 2, 0], dtype=np.uint8).view(bool)
    (tmp_path / "b").write_bytes(reseal(raw, arrays={"always_keep": two}))
    refused(tmp_path / "b", "other than 0 and 1")


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "F64", "shape": [15], "data_offsets": [0, 1 << 60]},
        {"dtype": "F64", "shape": [1 << 57], "data_offsets": [0, 1 << 60]},
        {"dtype": "F64", "shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [15], "data_offsets": [8, 128]},
        {"dtype": "F64", "shape": [15], "data_offsets": [120, 0]},
        {"dtype": "F64", "shape": [-15], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": 15, "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [15.0], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [True, 15], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [1] * 70 + [15], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [15], "data_offsets": [0, 120, 0]},
        {"dtype": "F64", "shape": [15], "data_offsets": [0, 10**40]},
        {"dtype": "Q99", "shape": [15], "data_offsets": [0, 120]},
        {"dtype": None, "shape": [15], "data_offsets": [0, 120]},
        {"dtype": "F64", "shape": [15]},
        {"dtype": "F64", "shape": [15], "data_offsets": [0, 120], "extra": 1},
        [],
        None,
        "gram",
    ],
)
def test_nonsense_declarations(spec: Any, tmp_path: Path) -> None:
    """The seal does not cover offsets, so these must be caught by looking at them."""
    save(small(), tmp_path / "a")
    header, data = header_of((tmp_path / "a").read_bytes())
    header["gram"] = spec
    (tmp_path / "b").write_bytes(with_header(header, data))
    refused(tmp_path / "b")


@pytest.mark.parametrize("header", [[], 7, "x", {"__metadata__": []}, {"__metadata__": {"a": 1}}, {}])
def test_nonsense_headers(header: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_header(header, b""))
    refused(tmp_path / "a")


@pytest.mark.parametrize("length", [0, 1, 2, 1 << 20, 100_000_001, 1 << 62, (1 << 64) - 1])
def test_nonsense_header_lengths(length: int, tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(length.to_bytes(8, "little") + raw[8:])
    refused(tmp_path / "b")


def test_duplicate_keys_and_text_that_is_no_text(tmp_path: Path) -> None:
    save(small(), tmp_path / "a")
    header, data = header_of((tmp_path / "a").read_bytes())
    text = json.dumps(header).replace('"gram"', '"gram": {}, "gram"', 1).encode()
    (tmp_path / "b").write_bytes(len(text).to_bytes(8, "little") + text + data)
    refused(tmp_path / "b", "not a safetensors file")
    header["__metadata__"]["name"] = "\ud800"
    (tmp_path / "b").write_bytes(with_header(header, data))
    refused(tmp_path / "b", "not a safetensors file")


def test_a_huge_file_that_holds_nothing_allocates_nothing(tmp_path: Path) -> None:
    """A sparse file of 1 TB whose header is consistent: refused on the header alone, or without its gram in memory."""
    save(small(), tmp_path / "a")
    header, _ = header_of((tmp_path / "a").read_bytes())
    for name in list(header):
        if name not in ("__metadata__", "gram"):
            del header[name]
    items = 1 << 37
    header["gram"] = {"dtype": "F64", "shape": [items], "data_offsets": [0, 8 * items]}
    raw = with_header(header, b"")
    with (tmp_path / "b").open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + 8 * items)
    tracemalloc.start()
    try:
        refused(tmp_path / "b")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------------------------- fuzz


@pytest.fixture(scope="module")
def fuzz_target() -> bytes:
    return (GOLDEN / "instance-1.0-full.safetensors").read_bytes()


def outcome(raw: bytes, path: Path, original: Problem) -> None:
    path.write_bytes(raw)
    try:
        problem = load(path)
    except FormatError:
        return
    assert_same(problem, original)


def test_cut_at_every_byte(fuzz_target: bytes, tmp_path: Path) -> None:
    for length in range(len(fuzz_target)):
        (tmp_path / "a").write_bytes(fuzz_target[:length])
        refused(tmp_path / "a")


def test_every_byte_changed(fuzz_target: bytes, tmp_path: Path) -> None:
    original = load(GOLDEN / "instance-1.0-full.safetensors")
    rng = np.random.default_rng(0)
    for at in range(len(fuzz_target)):
        raw = bytearray(fuzz_target)
        raw[at] ^= int(rng.integers(1, 256))
        outcome(bytes(raw), tmp_path / "a", original)


def test_random_damage(fuzz_target: bytes, tmp_path: Path) -> None:
    original = load(GOLDEN / "instance-1.0-full.safetensors")
    rng = np.random.default_rng(1)
    size = len(fuzz_target)
    for _ in range(1000):
        raw = bytearray(fuzz_target)
        for _ in range(int(rng.integers(1, 4))):
            start, span = int(rng.integers(0, size)), int(rng.integers(0, 40))
            other = int(rng.integers(0, size))
            what = int(rng.integers(0, 4))
            if what == 0:
                raw[start : start + span] = rng.bytes(span)
            elif what == 1:
                del raw[start : start + span]
            elif what == 2:
                raw[start:start] = raw[other : other + span]
            else:
                raw[start : start + span] = raw[other : other + span]
        outcome(bytes(raw), tmp_path / "a", original)


def test_damage_behind_a_valid_seal(fuzz_target: bytes, tmp_path: Path) -> None:
    """Metadata mutated and resealed: any error of the library's family is right, nothing else is."""
    rng = np.random.default_rng(2)
    header, _ = header_of(fuzz_target)
    keys = [key for key in header["__metadata__"] if key not in ("seal", "sha256")]
    letters = '0123456789-+.eE"[]{},:truefalsn \\u00'
    for _ in range(300):
        key = keys[int(rng.integers(len(keys)))]
        text = list(header["__metadata__"][key])
        for _ in range(int(rng.integers(1, 3))):
            at = int(rng.integers(len(text) + 1))
            text[at : at + int(rng.integers(0, 3))] = letters[int(rng.integers(len(letters)))]
        (tmp_path / "a").write_bytes(reseal(fuzz_target, metadata={key: "".join(text)}))
        with suppress(OsscarError):
            load(tmp_path / "a")


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(small(), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(random_instance(0, n=4), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(random_instance(0, n=4), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors: cannot be written"):
            save(random_instance(0, n=40), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(small(), tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with suppress(KeyboardInterrupt), replacing(path) as aside:
        aside.write_bytes(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    one, two = random_instance(0, "correlated", n=5), random_instance(1, "correlated", n=5)
    save(one, path)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            save(two, path)
            save(one, path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            assert load(path).hash in (one.hash, two.hash)
    finally:
        stop.set()
        writer.join()


def test_a_link_is_followed_and_a_directory_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(small(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(small(), load(tmp_path / "real"))
    with pytest.raises(IsADirectoryError):
        save(small(), tmp_path)
    with pytest.raises(FileNotFoundError):
        save(small(), tmp_path / "no" / "where")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"keeps": [4]}, "keeps"),
        ({"keeps": [-1]}, "keeps"),
        ({"keeps": [1.0]}, "keeps"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        save(small(), tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unicode"):
        save(small(name="\ud800"), tmp_path / "a")


def test_memory_of_saving_and_loading(tmp_path: Path) -> None:
    """One Gram matrix of 8 MB: beside it, saving and reading hold its triangle."""
    problem = Problem(np.diag(np.arange(1.0, 1025.0)), np.ones((1024, 3)))
    _ = problem.hash
    size = problem.gram.nbytes
    tracemalloc.start()
    try:
        save(problem, tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 0.7 * size
        tracemalloc.reset_peak()
        with SealedFile(tmp_path / "a", "osscar-opt/instance", "1.0") as file:
            _unpacked(file, 1024)
        assert tracemalloc.get_traced_memory()[1] < 1.7 * size
    finally:
        tracemalloc.stop()


def test_too_large_for_the_memory_there_is(tmp_path: Path) -> None:
    class Huge:
        label = "a"

        def get_tensor(self, name: str) -> None:
            raise MemoryError

        def read(self, name: str) -> None:
            pass

        def __exit__(self, *exc: object) -> None:
            pass

    save(small(), tmp_path / "a")
    with SealedFile(tmp_path / "a", "osscar-opt/instance", "1.0") as file:
        file._file = Huge()
        with pytest.raises(FormatError, match="array 'gram' takes more memory than is free"):
            file.read("gram")
    with pytest.raises(FormatError, match=r"2097152\.0 GiB, more memory than is free"):
        _unpacked(Huge(), 1 << 24)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    save(random_instance(0, n=64), tmp_path / "a")
    with SealedFile(tmp_path / "a", "osscar-opt/instance", "1.0") as file:
        os.truncate(tmp_path / "a", 2000)
        with pytest.raises(FormatError, match="the file changed while it was read"):
            file.read("gram")
