"""A certificate: a proof tree, the problem it is about, and what it claims; written to and read from one file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray, BoolArray, FloatArray, IntArray
from osscar_opt.certificates import checker
from osscar_opt.certificates.checker import CheckReport, Document, Posed
from osscar_opt.certificates.tree import PackedTree, ProofTree, live_rows, root_decisions
from osscar_opt.errors import FormatError, InputError

__all__ = ["Certificate"]

_CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL"}


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """A proof that no support of a problem has a value below `bound`.

    Attributes
    ----------
    posed : Posed
        The problem; without its Gram and cross matrix if the file left them out.
    proof : PackedTree
        The tree and its relaxations, as arrays.
    directions : (q, k) array or None
        Orthonormal directions of the outputs into which relaxations of several terms split them.
    term_of_direction : (k,) array of int or None
    bound : float
        The claim.
    support : (n,) mask or None
        A support whose value is to be compared with the bound.
    value : float or None
        What its value is claimed to be.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2)
    >>> tree = ProofTree.of(problem)
    >>> tree.close_enumerated(0)
    >>> certificate = Certificate.of(problem, tree, support=np.array([False, True, True]), bound=0.5)
    >>> certificate.check().proved
    'optimal'
    """

    posed: Posed
    proof: PackedTree
    directions: FloatArray | None
    term_of_direction: IntArray | None
    bound: float
    support: BoolArray | None = None
    value: float | None = None

    @classmethod
    def of(
        cls,
        problem: Any,
        tree: ProofTree,
        *,
        bound: float,
        support: BoolArray | None = None,
        value: float | None = None,
        directions: tuple[FloatArray, IntArray | None] | None = None,
    ) -> Certificate:
        """Put a tree and its problem together; nothing is proved before `check`.

        Parameters
        ----------
        problem : Problem
            Presolved or not: the referee turns a certificate of the presolved problem into one of the problem as
            posed.  Its arrays are not copied.
        tree : ProofTree
            Made by ``ProofTree.of(problem)``, or with the same groups decided at the root.
        bound : float
            The claim; finite.
        support : (n,) mask, optional
        value : float, optional
        directions : (V, term_of_direction), optional
            V (q, k) with orthonormal columns, and the term 0, 1, ... of each, None for one term; one term and no V if
            left out.

        Raises
        ------
        InputError
            If sizes disagree, or the root of the tree is not that of the problem.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> Certificate.of(problem, ProofTree.of(problem), bound=0.0)
        Certificate(n=2, nodes=1, relaxations=0, bound=0)
        """
        posed = Posed.of(problem)
        root = ProofTree.of(problem)
        same_root = np.array_equal(root.removed, tree.removed) and np.array_equal(root.kept, tree.kept)
        if not same_root:
            raise InputError(
                "the tree does not start where the problem does: make it by ProofTree.of(problem), which decides "
                "forced and dead groups."
            )
        if not math.isfinite(bound) or not (value is None or math.isfinite(value)):
            raise InputError("bound and value must be finite numbers.")
        sizes = np.bincount(posed.group_of_row, minlength=tree.n)
        proof = tree.packed(sizes, len(posed.limit))
        vectors, terms = (None, None) if directions is None else directions
        columns = _outputs(posed) if vectors is None else vectors.shape[1]
        if not len(proof.lam):
            proof = proof._replace(lam=np.zeros((0, columns), dtype=np.float32))
        if proof.lam.shape[1] != columns:
            raise InputError(
                f"multipliers_matrix must have {columns} columns, and theirs is {proof.lam.shape[1]}."
            )
        return cls(
            posed=posed,
            proof=proof,
            directions=None if vectors is None else np.asarray(vectors, dtype=np.float64),
            term_of_direction=None if terms is None else np.asarray(terms, dtype=np.int64),
            bound=float(bound),
            support=None if support is None else np.array(support, dtype=bool),
            value=None if value is None else float(value),
        )

    def claiming(
        self, *, bound: float, support: BoolArray | None = None, value: float | None = None
    ) -> Certificate:
        """Return the same proof with other claims.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> Certificate.of(problem, ProofTree.of(problem), bound=0.0).claiming(bound=-1.0).bound
        -1.0
        """
        return dataclasses.replace(self, bound=bound, support=support, value=value)

    def lifted(
        self,
        problem: Any,
        groups: IntArray,
        *,
        columns: FloatArray | None = None,
        support: BoolArray | None = None,
    ) -> Certificate:
        """Return the same proof for a larger problem, of which this one's is what presolve left.

        Parameters
        ----------
        problem : Problem
            The problem as posed.
        groups : (n,) array of int
            Which of its groups are this problem's groups 0, 1, ...; ascending.
        columns : (q of the problem, q) array, optional
            Orthonormal Q with ``cross = Q' applied to the columns of the larger cross``, where presolve changed them.
        support : mask, optional
            This certificate's support over the larger problem's groups.

        Raises
        ------
        InputError
            If the groups that `groups` leaves out are not those decided at the root of the larger problem.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> certificate = Certificate.of(problem, ProofTree.of(problem), bound=0.0)
        >>> larger = Problem(np.eye(3), np.ones((3, 1)), keep=1, always_remove=[1])
        >>> certificate.lifted(larger, np.array([0, 2])).check().valid
        True
        """
        if not np.array_equal(groups[_free(self.posed)], _free(Posed.of(problem))):
            raise InputError("the proof is not about the groups that the problem leaves free.")
        posed = Posed.of(problem)
        tree = self.proof.tree.copy()
        tree[tree >= 0] = groups[tree[tree >= 0]]
        proof = _without_dead_rows(self.proof._replace(tree=tree), posed)
        directions = self.directions
        if columns is not None and directions is not None:
            directions = columns @ directions
        elif columns is not None and proof.dual.any():
            directions = columns  # multipliers stay as narrow as they are
        return dataclasses.replace(
            self,
            posed=posed,
            proof=proof,
            directions=directions,
            support=support,
        )

    def check(self, problem: Any = None, **options: Any) -> CheckReport:
        """Check the proof; see `osscar_opt.certificates.check`, to which the arguments go.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> Certificate.of(problem, ProofTree.of(problem), bound=0.7).check().reasons
        ('The bound 0.7 is claimed, but the leaf at node 0 (open) proves only 0.',)
        """
        return checker.check(self, problem, **options)

    def document(self) -> Document:
        """The parts, as the checker takes them.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> Certificate.of(problem, ProofTree.of(problem), bound=0.0).document().tree
        array([-5])
        """
        return Document(
            posed=self.posed,
            **self.proof._asdict(),
            directions=self.directions,
            term_of_direction=self.term_of_direction,
            support=self.support,
            bound=self.bound,
            value=self.value,
        )

    def save(self, path: str | os.PathLike[str], *, embed: bool = True) -> None:
        """Write the certificate to a file, aside first and then into place.

        Parameters
        ----------
        path : path-like
            By custom it ends in ``.safetensors``.
        embed : bool, optional
            Whether the file holds the problem's Gram and cross matrix.  Without them it is smaller, and can only be
            checked together with the problem.

        Raises
        ------
        OSError
            If the disk refuses; an old file is then untouched.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "proof.safetensors"
        >>> Certificate.of(problem, ProofTree.of(problem), bound=0.0).save(path)
        >>> Certificate.load(path).check().proved
        'bound'
        """
        target = Path(path).resolve()
        aside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            with aside.open("xb") as file:
                file.write(self.to_bytes(embed=embed))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def to_bytes(self, *, embed: bool = True) -> bytes:
        """Return what `save` writes.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> raw = Certificate.of(problem, ProofTree.of(problem), bound=0.0).to_bytes()
        >>> Certificate.load(raw).bound
        0.0
        """
        arrays = self._arrays(embed)
        outputs = _outputs(self.posed) if self.directions is None else len(self.directions)
        posed, p, n = self.posed, len(self.posed.group_of_row), len(self.posed.always_keep)
        metadata = {
            "format": checker.FORMAT,
            "version": checker.VERSION,
            "sizes": json.dumps({"rows": p, "columns": outputs, "groups": n}),
            "problem": json.dumps({"hash": posed.hash, "name": posed.name}),
            "base": json.dumps(posed.base),
            "constant": json.dumps(posed.constant),
            "claim": json.dumps({"bound": self.bound, "value": self.value}, allow_nan=False),
        }
        return _file(metadata, arrays)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes, problem: Any = None) -> Certificate:
        """Read a certificate from its file, or from the bytes of one.  Nothing is proved before `check`.

        Parameters
        ----------
        source : path-like or bytes
        problem : Problem, optional
            The certificate's problem; needed only if the file was written with ``embed=False``.

        Raises
        ------
        FormatError
            In one sentence: not a certificate, another version, cut short, damaged, or of another problem.

        Examples
        --------
        >>> Certificate.load("no/such/file")
        Traceback (most recent call last):
        osscar_opt.errors.FormatError: no/such/file: the file cannot be opened (No such file or directory).
        """
        try:
            document = checker.read(source)
            if problem is not None:
                document = document._replace(posed=checker.same_problem(document.posed, Posed.of(problem)))
        except checker.Refused as reason:
            label = "certificate" if isinstance(source, bytes) else os.fspath(source)
            sentence = str(reason)
            raise FormatError(f"{label}: {sentence[0].lower()}{sentence[1:]}") from reason
        parts = document._asdict()
        proof = PackedTree(**{name: parts.pop(name) for name in PackedTree._fields})
        return cls(proof=proof, **parts)

    def _arrays(self, embed: bool) -> dict[str, AnyArray]:
        posed = self.posed
        arrays: dict[str, AnyArray | None] = {
            "gram": None,
            "cross": None,
            "group_of_row": posed.group_of_row,
            "usage": posed.usage,
            "limit": posed.limit,
            "always_keep": posed.always_keep,
            "always_remove": posed.always_remove,
            "support": self.support,
            **self.proof._asdict(),
            "directions": self.directions,
            "term_of_direction": self.term_of_direction,
        }
        if embed and posed.gram is not None:
            arrays |= {"gram": _packed(posed.gram), "cross": posed.cross}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}

    def __repr__(self) -> str:
        nodes, relaxations = len(self.proof.tree), len(self.proof.relaxed_at)
        n = len(self.posed.always_keep)
        return f"Certificate(n={n}, nodes={nodes}, relaxations={relaxations}, bound={self.bound:.9g})"


def _root(posed: Posed) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Groups removed and kept at the root, and the rows that are not dead."""
    if posed.gram is None or posed.cross is None:
        raise InputError("the certificate does not hold the arrays of its problem.")
    live = live_rows(posed.gram, posed.cross)
    return *root_decisions(live, posed.group_of_row, posed.always_keep, posed.always_remove), live


def _outputs(posed: Posed) -> int:
    """Columns of cross; 0 if it is neither here nor needed."""
    return 0 if posed.cross is None else int(posed.cross.shape[1])


def _free(posed: Posed) -> IntArray:
    removed, kept, _ = _root(posed)
    return np.flatnonzero(~(removed | kept))


def _without_dead_rows(proof: PackedTree, posed: Posed) -> PackedTree:
    """The proof with nothing on dead rows of live groups: D = 1/2 there, as the checker takes H to be 1, Lambda = 0."""
    removed, kept, live = _root(posed)
    if (live | removed[posed.group_of_row]).all():
        return proof
    sizes = np.bincount(posed.group_of_row)
    root = kept.astype(np.int8) - removed.astype(np.int8)
    free = checker.walk(proof.tree, root)[proof.relaxed_at] == 0
    d, lam, at, row_at = proof.d.copy(), proof.lam.copy(), 0, 0
    plain = free[~proof.dual]
    terms = len(d) // max(1, int((plain @ (sizes * (sizes + 1) // 2)).sum()))
    dead_of = [~live[posed.group_of_row == group] for group in range(len(sizes))]
    for groups, dual in zip(free, proof.dual, strict=True):
        for group in np.flatnonzero(groups) if dual else np.tile(np.flatnonzero(groups), terms):
            dead = dead_of[group]
            if dual:
                lam[row_at : row_at + len(dead)][dead] = 0.0
                row_at += len(dead)
                continue
            row, column = np.tril_indices(len(dead))
            block = d[at : at + len(row)]
            block[dead[row] | dead[column]] = 0.0
            block[(row == column) & dead[row]] = 0.5
            at += len(row)
    return proof._replace(d=d, lam=lam)


def _packed(gram: FloatArray) -> FloatArray:
    """The upper triangle, row after row."""
    p, at = len(gram), 0
    packed = np.empty(p * (p + 1) // 2)
    for i in range(p):
        packed[at : at + p - i] = gram[i, i:]
        at += p - i
    return packed


def _file(metadata: Mapping[str, str], arrays: Mapping[str, AnyArray]) -> bytes:
    """A file of the safetensors layout: length of the header, header, data; sums and seal included."""
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    pieces = {
        name: arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False).tobytes()
        for name in order
    }
    sums = {name: hashlib.sha256(piece).hexdigest() for name, piece in pieces.items()}
    empty = "0" * 64
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": json.dumps(sums), "seal": empty}}
    at = 0
    for name, piece in pieces.items():
        code, shape = _CODES[arrays[name].dtype.name], list(arrays[name].shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + len(piece)]}
        at += len(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    sealed = head.replace(
        f'"seal": "{empty}"'.encode(), f'"seal": "{checker.header_seal(head, empty)}"'.encode()
    )
    return b"".join([sealed, *pieces.values()])
