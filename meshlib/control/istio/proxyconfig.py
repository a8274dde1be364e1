"""ProxyConfig (the kind): settings of node proxies. The mesh's default is in `meshconfig`."""

from pydantic import Field

from meshlib.control.istio.fields import Int32, Labels, LabelSelector, Spec, Text


class ProxyImage(Spec):
    """The image of a node proxy."""

    image_type: Text = ""


class ProxyConfig(Spec):
    """The spec of a ProxyConfig."""

    selector: LabelSelector | None = None
    concurrency: Int32 | None = None
    environment_variables: Labels = Field(default_factory=dict)
    image: ProxyImage | None = None
