"""The API: what users and our own processes say to each other, as values.

One module per kind; ``meta`` holds what kinds share, ``reasons`` the words of conditions, ``parse``
turns stored objects into values, ``schema`` turns the models into CustomResourceDefinitions. The
models are the one place where a field, its bounds and its description are written; the YAML under
``crds/`` is generated from them. Nothing here does I/O or decides anything.
"""

from typing import Final

GROUP: Final = "torpor.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FINALIZER: Final = "torpor.dev/instance"
NODE_LABEL: Final = "torpor.dev/node"  # "true" on Nodes that take Instances; set by the admin
NODE_CONDITION: Final = "TorporKVM"  # the one condition an agent may set on its own Node
NODE_SERVICE_ACCOUNT: Final = "torpor-node"
OPERATOR_SERVICE_ACCOUNT: Final = "torpor-operator"
OPERATOR_LEASE: Final = "torpor-operator"


def node_lease(node: str) -> str:
    """The name of the Lease by which the agent of ``node`` says that it is alive.

    The only one that the admission policy lets that agent write.
    """
    return f"node-{node}"
