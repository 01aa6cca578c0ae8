"""Images: from an OCI reference to one read-only root filesystem, stored once by its digest.

What lives here: reading references and manifests (pure), talking to registries (skopeo), unpacking
layers (umoci), making the filesystem (erofs), and the store that shares the result among all
Instances of a node and collects what nobody uses.

What may not: anything about an Instance, a VMM or Kubernetes. Callers hand over a reference and
perhaps a digest, and get facts. Bytes from a registry are hostile until their size and digest were
checked here, and stay bounded after that.
"""
