"""The problem and its parts: groups, limits, presolve reductions, solutions, paths."""
