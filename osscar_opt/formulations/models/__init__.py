"""The problem as other mathematics: models for mixed-integer and conic solvers, and the bounds they rest on.

normal        the problem in units in which every model of it is well scaled
weights       big-M: how large a weight can be at any support that matters
perspective   the split H = (H - D) + D, and the lower bound that any z gives
conic         big-M, perspective, its relaxation and the semidefinite relaxation, as cvxpy problems
"""
