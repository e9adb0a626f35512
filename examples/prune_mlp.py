"""Prune the hidden neurons of a small classifier, and compare what methods leave of its accuracy.

A multilayer perceptron learns to tell apart points on four noisy spirals; then all but six of the 64 neurons
of its last hidden layer go. Only what they put out on the training points is used: no gradient, no retraining.
Takes seconds:

    python examples/prune_mlp.py
"""

from __future__ import annotations

import copy
import math

import torch

from osscar_opt import Problem

HIDDEN, KEEP, ARMS = 64, 6, 4


def spirals(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    arm = torch.randint(ARMS, (count,), generator=generator)
    along = torch.rand(count, generator=generator)
    angle = 2 * math.pi * (arm / ARMS + 0.6 * along)
    points = (0.2 + along)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.04 * torch.randn(count, 2, generator=generator), arm


def train(model: torch.nn.Module, points: torch.Tensor, arm: torch.Tensor, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(points), arm).backward()
        optimizer.step()


def accuracy(model: torch.nn.Module, points: torch.Tensor, arm: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(points).argmax(dim=1) == arm).double().mean())


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    points, arm = spirals(1000, generator)
    unseen, unseen_arm = spirals(2000, generator)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(HIDDEN, ARMS),
    )
    train(model, points, arm)
    print(f"dense: accuracy {accuracy(model, unseen, unseen_arm):.3f}, {HIDDEN} hidden neurons")

    # The inputs of the last layer are the hidden neurons: removing an input removes the neuron.
    problem = Problem.from_torch_layer(model, "4", [points], keep=KEEP)
    print(f"\n{'method':<16}{'relative':>10}{'accuracy':>10}   with {KEEP} neurons")
    for method in ["random", "magnitude", "magnitude_refit", "greedy", "osscar", "search"]:
        solution = problem.solve(method, time_limit=10)
        pruned = copy.deepcopy(model)
        solution.apply_to(pruned, name="4")
        print(f"{method:<16}{solution.relative:>10.2%}{accuracy(pruned, unseen, unseen_arm):>10.3f}")


if __name__ == "__main__":
    main()
