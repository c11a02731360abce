"""The closed lists: every code that a verdict or a finding can carry, and what it means in one line.

JUnit, the Chinese report, history and OCP output derive from codes and measurements, never from prose.
"""

from __future__ import annotations

CRITERIA = ("startup", "throughput", "determinism", "convergence")

# what end.json's failure classes are called as codes
FAILURE_CLASSES = {
    "out of memory": "out-of-memory",
    "collective": "collective",
    "hang": "hang",
    "device": "device",
    "killed": "killed",
    "numerical": "numerical",
    "set-up": "set-up",
    "unknown": "unknown-failure",
}

_EACH = {
    "passed": "what was asked is met",
    "not-run": "the run that it needs was not launched",
    "run-failed": "the run that it needs failed",
    "unfinished": "the run that it needs has not ended, or died with its machine",
    "unreadable": "the evidence cannot be read",
    "no-steps": "the log holds no step",
    "too-few-steps": "the run has fewer steps than this needs",
    "steps-not-whole": "the steps are not 0, 1, 2, ... without gap or repeat",
    "resumed": "the run continued from a checkpoint",
    "skipped-updates": "InternLM skipped parameter updates",
    "tokens-per-step": "tokens per step contradict the global batch",
    "not-finite": "a figure is NaN or infinite",
    "seed-contradicted": "the log names another seed than was asked for",
}

CODES: dict[str, str] = {
    **{f"{criterion}-{code}": text for criterion in CRITERIA for code, text in _EACH.items()},
    "startup-out-of-memory": "a device, or the host, ran out of memory",
    "startup-collective": "communication between ranks failed",
    "startup-hang": "training stopped making steps",
    "startup-device": "a device reported an error",
    "startup-killed": "a process was killed from outside",
    "startup-numerical": "training ran into NaN or overflow",
    "startup-set-up": "training did not start: its set-up is wrong",
    "startup-unknown-failure": "training failed for a reason that no rule names",
    "startup-interrupted": "the run was interrupted by the person or machine that started it",
    "startup-too-many-steps": "the run has more steps than were asked for",
    "startup-weights-not-loaded": "fine-tuning did not start from trained weights",
    "startup-memory-contradicted": "the log reports more memory than the device has",
    "throughput-no-requirement": "no minimum TGS is on record",
    "throughput-below-minimum": "sustained TGS is below the minimum",
    "throughput-uncertain": "sustained TGS and the minimum are closer than the noise",
    "throughput-clock-contradicted": "self-reported TGS contradicts the times of the log lines",
    "throughput-tflops-contradicted": "TFLOPS and TGS contradict each other",
    "throughput-implausible": "the TGS figures cannot come from a running machine",
    "determinism-diverged": "two repeats differ in a loss or gradient norm",
    "determinism-groups-differ": "two repeats print different gradient norms",
    "determinism-lengths-differ": "the two repeats have different lengths",
    "determinism-requests-differ": "the two repeats were not asked for alike",
    "determinism-same-log": "the two repeats are one log twice",
    "determinism-outside-tolerance": "two repeats are further apart than the tolerance",
    "determinism-reference-missed": "the losses do not follow the reference curve",
    "determinism-reference-length": "the reference curve is shorter than the comparison",
    "determinism-implausible": "the losses cannot come from a training run",
    "convergence-no-requirement": "no maximum loss is on record",
    "convergence-above-maximum": "the final loss is not below the maximum",
    "convergence-below-floor": "the final loss is below the entropy of the data",
    "convergence-implausible": "the losses cannot come from a training run",
    "convergence-clock-contradicted": "the hours of training contradict the self-reported TGS",
    "convergence-see-other-case": "another case of the model has the long run",
    "convergence-short-runs-failed": "no long run, because a short run of the case failed",
    "regression-unchanged": "nothing changed against the baseline",
    "regression-improved": "a figure is better than the baseline; refresh it with a pin",
    "regression-too-few-nights": "the history has too few nights to compare with",
    "regression-tgs": "sustained TGS is lower than the baseline",
    "regression-memory": "peak memory is higher than the baseline",
    "regression-startup": "the first step comes later than the baseline's",
    "regression-loss-changed": "the losses are no longer bit-equal to the baseline's",
    "regression-no-figure": "tonight left no figure where earlier nights have one",
}

FINDINGS: dict[str, str] = {
    "short-run": "fewer steps than the procedure asks for",
    "end-not-recorded": "how the run ended is not on record",
    "exit-status": "the exit status contradicts the steps",
    "left-behind": "processes, ports or device memory were still in use after the run",
    "release-not-seen": "nobody saw whether the run gave its devices' memory back",
    "odd-log": "something about the log is unusual",
    "drift": "steps get slower or faster over the run",
    "periodic-stalls": "slow steps come at equal distances",
    "rare-stalls": "single steps take far longer than the rest",
    "bimodal": "step times fall into two groups",
    "slow-start": "the warm-up takes far longer than the steps after it",
    "pauses": "time passes between steps that the self-reported TGS leaves out",
    "too-noisy": "step times vary too much for a run of this length",
    "no-reference": "no reference curve on record: nothing was compared with another machine",
    "no-peak": "no peak FLOPS on record for the device: MFU is not known",
    "deterministic-cost": "how fast the deterministic mode is against the speed run",
    "spikes": "single losses far above their neighbours",
    "plateau": "the loss stays where it began",
    "rising": "the loss rises after its minimum",
}
