"""AuthorizationPolicy: who may do what at a workload."""

from enum import StrEnum

from meshlib.control.istio.fields import LabelSelector, Spec, TargetReference, Text


class Action(StrEnum):
    """What a matching rule does."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class Source(Spec):
    """Who sends a request; fields are joined by and, the values of one by or."""

    principals: tuple[Text, ...] = ()
    not_principals: tuple[Text, ...] = ()
    request_principals: tuple[Text, ...] = ()
    not_request_principals: tuple[Text, ...] = ()
    namespaces: tuple[Text, ...] = ()
    not_namespaces: tuple[Text, ...] = ()
    service_accounts: tuple[Text, ...] = ()
    not_service_accounts: tuple[Text, ...] = ()
    ip_blocks: tuple[Text, ...] = ()
    not_ip_blocks: tuple[Text, ...] = ()
    remote_ip_blocks: tuple[Text, ...] = ()
    not_remote_ip_blocks: tuple[Text, ...] = ()
    trust_domains: tuple[Text, ...] = ()
    not_trust_domains: tuple[Text, ...] = ()


class Operation(Spec):
    """What is asked for; fields are joined by and, the values of one by or."""

    hosts: tuple[Text, ...] = ()
    not_hosts: tuple[Text, ...] = ()
    ports: tuple[Text, ...] = ()
    not_ports: tuple[Text, ...] = ()
    methods: tuple[Text, ...] = ()
    not_methods: tuple[Text, ...] = ()
    paths: tuple[Text, ...] = ()
    not_paths: tuple[Text, ...] = ()


class From(Spec):
    """A source."""

    source: Source | None = None


class To(Spec):
    """An operation."""

    operation: Operation | None = None


class Condition(Spec):
    """A condition on an attribute of the request."""

    key: Text = ""
    values: tuple[Text, ...] = ()
    not_values: tuple[Text, ...] = ()


class Rule(Spec):
    """Matches if one of `from`, one of `to` and every one of `when` do."""

    from_: tuple[From, ...] = ()
    to: tuple[To, ...] = ()
    when: tuple[Condition, ...] = ()


class ExtensionProvider(Spec):
    """Who decides when the action is CUSTOM; a name of the mesh's extensionProviders."""

    name: Text = ""


class AuthorizationPolicy(Spec):
    """The spec of an AuthorizationPolicy. The empty one allows nothing."""

    selector: LabelSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: tuple[TargetReference, ...] = ()
    rules: tuple[Rule, ...] = ()
    action: Action = Action.ALLOW
    provider: ExtensionProvider | None = None
