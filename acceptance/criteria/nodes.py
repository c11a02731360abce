"""The nodes of one run must be alike: what each said of itself, compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

ALIKE = (
    "accelerator",
    "driver",
    "python",
    "torch",
    "libraries",
    "internlm",
    "collective",
    "memory_bytes",
    "cpu",
    "kernel",
)
"""Keys of a node's record whose values are equal on every node."""


def odd(nodes: Sequence[Mapping[str, Any]], expected: int) -> list[str]:
    """One sentence for each way in which the nodes of a run differ, [] where they are alike.

    nodes     content of nodes/<host>.json
    expected  nodes that the run was asked to use

    The value of most nodes is the rule; the others are named with theirs.
    """
    found = [] if len(nodes) == expected else [f"{len(nodes)} of {expected} nodes left a record of themselves"]
    for key in (*ALIKE, "devices"):
        values = [json.dumps(_devices(node) if key == "devices" else node.get(key), sort_keys=True) for node in nodes]
        rule = Counter(values).most_common(1)[0][0] if values else None
        found += [
            f"node {node.get('host', '?')} has {key} {value} where most have {rule}"
            for node, value in zip(nodes, values, strict=True)
            if value != rule
        ]
    return found


def _devices(node: Mapping[str, Any]) -> list[Any]:
    """Name and memory of each device; their numbers are their own."""
    return sorted([str(d.get("name")), d.get("memory_bytes")] for d in node.get("devices") or ())
