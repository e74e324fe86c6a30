"""A stored tree with other instructions in it: what a fork begins with that is to go another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flat.tree.charter import Charter
from flat.tree.instance import get_path
from flat.tree.refs import serialize_node
from flat.tree.restore import deserialize_instance, deserialize_node


def edited(charter: Charter, tree: Mapping[str, Any], edit: Mapping[str, str]) -> Mapping[str, Any]:
    """A tree as data in which instances, by their id, have other instructions: their nodes are written inline."""
    root = deserialize_instance(charter, tree)
    texts = {get_path(root, id_)[-1].id: text for id_, text in edit.items()}

    def changed(data: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(data)
        if (text := texts.get(data["id"])) is not None:
            node = serialize_node(deserialize_node(charter, data["node"]), charter, no_node_ref=True)
            made["node"] = {**node, "instructions": text}
        if data.get("children"):
            made["children"] = [changed(child) for child in data["children"]]
        return made

    return changed(tree)
