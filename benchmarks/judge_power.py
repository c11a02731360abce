"""How well the judges judge: what they notice, and how often throughput errs.

    python -m benchmarks.judge_power [--runs 1000] [--mutated 20] [--simulations 20000]

Prints three tables: honest runs rejected, by criterion (to be 0 of 1,000); the detection matrix of every mutation
against every check that must notice it (to be all); and throughput's false passes and false fails over simulated
noise, 90 measured steps (at the minimum at most 6 % with independent and AR(1) 0.3 noise, 8 % with AR(1) 0.7).
Exits 1 when one of these figures is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from acceptance.criteria import throughput
from acceptance.criteria.verdict import Verdict
from fixtures.internlm.log import Reading
from tests.criteria import honest, mutations
from tests.criteria.mutations import CATALOGUE, CHECKS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="honest runs a criterion (default: %(default)s)")
    parser.add_argument("--mutated", type=int, default=20, help="runs each mutation is applied to")
    parser.add_argument("--simulations", type=int, default=20_000, help="runs simulated for each kind of noise")
    options = parser.parse_args()
    good = [honest_runs(options.runs), detection(options.mutated), error_rates(options.simulations)]
    print("\nall figures reached" if all(good) else "\nA FIGURE IS MISSED")
    return 0 if all(good) else 1


def honest_runs(runs: int) -> bool:
    """Every honest run must pass every check; a finding on one is no rejection, but its share is shown."""
    rejected: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for seed in range(runs):
        for check, verdict in verdicts(seed):
            rejected[check] += verdict.outcome != "pass"
            for code in {finding.code for finding in verdict.findings}:
                found[f"{check}: {code}"] += 1
    print(f"honest runs rejected, of {runs}")
    for check in CHECKS:
        print(f"  {check:12} {rejected[check]}")
    print("  findings on them: " + (", ".join(f"{k} {v / runs:.1%}" for k, v in sorted(found.items())) or "none"))
    return not any(rejected.values())


def verdicts(seed: int) -> Iterator[tuple[str, Verdict]]:
    """Each check's verdict on the honest run of this seed."""
    made, runs = honest.evidence(seed)
    readings = {name: Reading(run) for name, run in runs.items()}
    for check in CHECKS:
        criterion = "determinism" if check in ("bitwise", "tolerance") else check
        if check == "tolerance":  # two runs that do differ, as without deterministic kernels
            rng = np.random.default_rng(seed)
            close = honest.close(rng, runs["first"].loss)
            second = honest.steps(rng, close, honest.grad_norms(rng, close))
            yield check, mutations.decide(made, check, [readings["first"], Reading(second)])
        else:
            yield check, mutations.decide(made, check, [readings[name] for name in mutations.RUNS[criterion]])


def detection(runs: int) -> bool:
    """The detection matrix: how many of `runs` honest runs each mutation is noticed in, by check."""
    print(f"\nmutations noticed, of {runs} (- where the check is not concerned)")
    print(f"  {'':62}" + "".join(f"{check:>12}" for check in CHECKS))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        noticed = {m.name: Counter() for m in CATALOGUE}
        for seed in range(runs):
            made, _ = honest.evidence(seed)
            for m in CATALOGUE:
                mutated = made.copy()
                m.edit(mutated, np.random.default_rng(seed))
                for check, expected in m.caught.items():
                    verdict = mutations.judge(mutated, check, Path(folder))
                    noticed[m.name][check] += mutations.noticed(verdict, expected)
    for m in CATALOGUE:
        cells = [str(noticed[m.name][check]) if check in m.caught else "-" for check in CHECKS]
        missed += sum(noticed[m.name][check] < runs for check in m.caught)
        print(f"  {m.name:62}" + "".join(f"{cell:>12}" for cell in cells))
    print(f"  {len(CATALOGUE)} mutations, {sum(len(m.caught) for m in CATALOGUE)} cells, {missed} not full")
    return missed == 0


NOISES = {"independent": 0.0, "AR(1) 0.3": 0.3, "AR(1) 0.7": 0.7}


def error_rates(simulations: int) -> bool:
    """Throughput over simulated noise, 90 measured steps: share of passes, fails and inconclusive verdicts."""
    print(f"\nthroughput, 90 measured steps, {simulations:,} simulations: pass / inconclusive / fail")
    reached = True
    for sigma in (0.01, 0.10):
        for name, phi in NOISES.items():
            shares = {}
            for percent in (0.0, -0.5, -1.0, 1.0):
                shares[percent] = rates(simulations, sigma, phi, percent)
                print(f"  noise {sigma:4.0%} {name:12} machine {percent:+.1f} %: " + _shares(shares[percent]))
            reached &= shares[0.0][0] <= (0.08 if phi == 0.7 else 0.06)
            if sigma == 0.01 and phi == 0.3:
                reached &= shares[-0.5][0] <= 0.001 and shares[-1.0][1] <= 0.01 and shares[1.0][1] <= 0.01
    for percent in (0.0, -1.0, 1.0):
        share = rates(simulations, 0.01, 0.3, percent, stalls=0.03)
        print(f"  noise   1% AR(1) 0.3, 3 % rare stalls, machine {percent:+.1f} %: " + _shares(share))
    return reached


def rates(
    simulations: int, sigma: float, phi: float, percent: float, stalls: float = 0.0
) -> tuple[float, float, float]:
    """Shares of pass, inconclusive and fail for a machine `percent` faster than the minimum.

    `stalls`: probability that a step takes three times as long; the machine's true speed includes them.
    """
    rng = np.random.default_rng(5)
    workload = honest.WORKLOAD
    tokens = workload.tokens_per_step / workload.world
    limit = tokens / (1 + 2 * stalls) * (1 - percent / 100 + percent**2 / 1e4)
    outcomes = np.zeros(3)
    for part in np.array_split(np.arange(simulations), max(1, simulations // 2000)):
        seconds = 1 + sigma * honest.autoregressive(rng, (len(part), 90), phi)
        seconds = np.where(rng.random(seconds.shape) < stalls, 3 * seconds, seconds)
        for row in np.maximum(seconds, 0.05):
            found = throughput.sustained(row, workload)
            outcomes[0 if found.lower >= limit else 2 if found.upper < limit else 1] += 1
    return tuple(outcomes / simulations)


def _shares(shares: tuple[float, float, float]) -> str:
    return " / ".join(f"{share:7.2%}" for share in shares)


if __name__ == "__main__":
    sys.exit(main())
