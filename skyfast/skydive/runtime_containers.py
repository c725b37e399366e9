"""Reads the names of containers and their pods from the data of container runtimes and kubelet.

The sources of these programs define the data:

* labels of kubelet: ``pkg/kubelet/types/labels.go``
* dockershim's container names, and its label ``io.kubernetes.docker.type``:
  ``pkg/kubelet/dockershim``
* annotations of containerd: ``pkg/cri/annotations``
* annotations of CRI-O: ``pkg/annotations``
"""

from typing import Final

from skyfast.skydive.topology_graph import ContainerLabels, KubernetesLabels, Node

_SANDBOX_NAME: Final = "POD"
_KUBELET_PREFIX: Final = "k8s"

_NO_LABELS: Final = ContainerLabels()
_NO_KUBERNETES: Final = KubernetesLabels()


def is_sandbox(container: Node) -> bool:
    """Return whether a container is a sandbox, which only provides a pod's network namespace."""
    labels, kubernetes = _labels(container)
    cri, crio = kubernetes.cri, kubernetes.crio
    docker_type = (kubernetes.docker and kubernetes.docker.type) or labels.docker_type
    return (
        docker_type == "podsandbox"
        or _container_label(container) == _SANDBOX_NAME
        or (cri is not None and cri.container_type == "sandbox")
        or (crio is not None and crio.container_type == "sandbox")
        or (container.metadata.name or "").startswith(f"{_KUBELET_PREFIX}_{_SANDBOX_NAME}_")
    )


def shown_name(container: Node) -> str | None:
    """Return the name of a container in its pod, or else its name in the container runtime."""
    _, kubernetes = _labels(container)
    kubelet = _kubelet_name(container)
    return (
        _container_label(container)
        or (kubernetes.cri and kubernetes.cri.container_name)
        or (kubelet and kubelet[0])
        or container.metadata.name
    )


def labelled_pod(container: Node) -> tuple[str, str] | None:
    """Read the namespace and name of a pod from a container's labels, or return None."""
    labels, kubernetes = _labels(container)
    pod, cri = kubernetes.pod, kubernetes.cri
    candidates = (
        (pod and pod.namespace, pod and pod.name),
        (labels.pod_namespace, labels.pod_name),
        (cri and cri.sandbox_namespace, cri and cri.sandbox_name),
    )
    for namespace, name in candidates:
        if namespace and name:
            return namespace, name
    return None


def kubelet_pod(container: Node) -> tuple[str, str] | None:
    """Read the namespace and name of a pod from a container's name, or return None."""
    parts = _kubelet_name(container)
    return (parts[2], parts[1]) if parts else None


def _kubelet_name(container: Node) -> tuple[str, str, str] | None:
    """Return CONTAINER, POD and NAMESPACE of the name ``k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT``.

    Kubelet gives such names to containers. After a conflict, kubelet appends an underscore and a
    random suffix. CONTAINER, POD and NAMESPACE contain no underscores.
    """
    parts = (container.metadata.name or "").split("_", 7)
    if len(parts) not in (6, 7) or parts[0] != _KUBELET_PREFIX or not all(parts[1:4]):
        return None
    return parts[1], parts[2], parts[3]


def _container_label(container: Node) -> str | None:
    labels, kubernetes = _labels(container)
    return (kubernetes.container and kubernetes.container.name) or labels.container_name


def _labels(container: Node) -> tuple[ContainerLabels, KubernetesLabels]:
    runtime = container.metadata.container
    labels = (runtime and runtime.labels) or _NO_LABELS
    return labels, (labels.io and labels.io.kubernetes) or _NO_KUBERNETES
