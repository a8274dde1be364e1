"""How a workload is called in telemetry, by its labels: both planes must find the same names.

Rules (Istio):

- The workload's name is the label `service.istio.io/workload-name`; without one there is no owner to ask as
  in Kubernetes, so it is `app`, then the canonical name's label, then the service account.
- The canonical service is `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`, else
  the workload's name; the revision is `service.istio.io/canonical-revision`, else
  `app.kubernetes.io/version`, else `version`, else `latest`.
- An endpoint says it in its metadata: `istio: {workload: name;namespace;service;revision;cluster}`.
"""

from collections.abc import Mapping

from meshlib.values import dataclass

CLUSTER = "Kubernetes"
"""Istio's name of the only cluster there is."""
WORKLOAD, APP, VERSION = "workload", "app", "version"
"""Keys of the endpoint's metadata `istio`; the last two are the labels of that name."""
_NAME_LABELS = ("service.istio.io/workload-name", "app", "service.istio.io/canonical-name")
_SERVICE_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


@dataclass(frozen=True, slots=True)
class Workload:
    """Empty text: it is not known."""

    name: str = ""
    namespace: str = ""
    service: str = ""
    """The canonical service."""
    revision: str = ""
    """The canonical revision; empty only if nothing is known of the workload."""
    app: str = ""
    version: str = ""
    cluster: str = ""


NOBODY = Workload()


def workload_of(namespace: str, account: str, labels: Mapping[str, str], cluster: str = CLUSTER) -> Workload:
    """The workload that runs as `account` and carries these labels."""
    return named(_first(labels, _NAME_LABELS) or account, namespace, labels, cluster)


def named(name: str, namespace: str, labels: Mapping[str, str], cluster: str) -> Workload:
    """A workload whose name is known."""
    return Workload(
        name,
        namespace,
        _first(labels, _SERVICE_LABELS) or name,
        _first(labels, _REVISION_LABELS) or "latest",
        labels.get("app", ""),
        labels.get("version", ""),
        cluster,
    )


def to_metadata(of: Workload) -> dict[str, str]:
    """What an endpoint's metadata `istio` says of it."""
    said = {WORKLOAD: f"{of.name};{of.namespace};{of.service};{of.revision};{of.cluster}"}
    if of.app:
        said[APP] = of.app
    if of.version:
        said[VERSION] = of.version
    return said


def from_metadata(said: Mapping[str, str]) -> Workload:
    """The workload of which an endpoint's metadata `istio` tells; NOBODY: of none."""
    parts = said.get(WORKLOAD, "").split(";")
    if len(parts) < 5:
        return NOBODY
    name, namespace, service, revision, cluster = parts[:5]
    app, version = said.get(APP, ""), said.get(VERSION, "")
    return Workload(name, namespace, service, revision or "latest", app, version, cluster)


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
