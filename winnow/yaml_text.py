"""YAML as people write it for a run, a manifest or a plan: what PyYAML reads safely, and no name given twice."""

from collections.abc import Hashable
from typing import Any

import yaml


class _OnceEach(yaml.SafeLoader):
    """PyYAML lets the last of two equal names win without a word: `filters:` twice would leave one filter out."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, with line and column, if it is no YAML or gives a name twice."""
    return yaml.load(text, Loader=_OnceEach)
