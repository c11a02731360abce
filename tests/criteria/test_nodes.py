"""Nodes of one run that are not alike."""

import pytest

from acceptance.criteria.nodes import ALIKE, odd


def node(number, **changes):
    device = {"index": 0, "id": f"GPU-{number}", "name": "H100", "memory_bytes": 80}
    return {"host": f"n{number}", **dict.fromkeys(ALIKE, "same"), "devices": [device, device], **changes}


def test_nodes_that_differ_in_names_and_serial_numbers_only_are_alike():
    assert odd([node(1, clock=1.0), node(2, clock=2.0), node(3)], 3) == []


@pytest.mark.parametrize("key", ALIKE)
def test_the_odd_one_is_named_with_both_values(key):
    (text,) = odd([node(1), node(2, **{key: "other"}), node(3)], 3)
    assert text == f'node n2 has {key} "other" where most have "same"'


def test_a_node_with_fewer_devices_is_odd():
    (text,) = odd([node(1), node(2), node(3, devices=[])], 3)
    assert text.startswith("node n3 has devices [] where most have")


@pytest.mark.parametrize("nodes", [[], [node(1)]])
def test_a_node_without_a_record_is_missed(nodes):
    assert odd(nodes, 2) == [f"{len(nodes)} of 2 nodes left a record of themselves"]
