"""Telemetry, as Istio's webhook checks it."""

from meshlib.control.istio.telemetry import (
    CustomTag,
    Metrics,
    MetricsOverrides,
    TagOperation,
    Telemetry,
    Tracing,
)
from meshlib.control.istio.validity import hosts, security
from meshlib.control.istio.validity.report import Report

_SOURCES = (("literal", "value"), ("environment", "name"), ("header", "name"))


def telemetry(spec: Telemetry, to: Report) -> None:
    """The whole spec."""
    security.target(spec, to)
    for group in ("tracing", "metrics", "access_logging"):
        for index, item in enumerate(getattr(spec, group)):
            for position, named in enumerate(item.providers):
                if not named.name:
                    to.at(group, index, "providers", position, "name").error("no name", "", "a name")
    if len(spec.tracing) > 1:
        to.at("tracing").warn("only one is used", len(spec.tracing), "one")
    for index, tracing in enumerate(spec.tracing):
        _tracing(tracing, to.at("tracing", index))
    for index, metrics in enumerate(spec.metrics):
        _metrics(metrics, to.at("metrics", index))


def _tracing(tracing: Tracing, to: Report) -> None:
    if tracing.random_sampling_percentage is not None:
        hosts.percent(tracing.random_sampling_percentage, to.at("random_sampling_percentage"))
    if len(tracing.providers) > 1:
        to.at("providers").warn("only one provider is used", len(tracing.providers), "one")
    for name, tag in tracing.custom_tags.items():
        if not name:
            to.at("custom_tags").error("an empty name", "''", "a name")
        _tag(tag, to.at("custom_tags", name))


def _tag(tag: CustomTag, to: Report) -> None:
    if not tag.model_fields_set:
        to.error("no value", "", "literal, environment, header or formatter")
    for source, field in _SOURCES:
        found = getattr(tag, source)
        if found is not None and not getattr(found, field):
            to.at(source, field).error("an empty text", "''", "a text")


def _metrics(metrics: Metrics, to: Report) -> None:
    hosts.duration(metrics.reporting_interval, to.at("reporting_interval"))
    for index, override in enumerate(metrics.overrides):
        _override(override, to.at("overrides", index))


def _override(override: MetricsOverrides, to: Report) -> None:
    if override.match and override.match.custom_metric == "":
        to.at("match", "custom_metric").error("an empty name", "''", "the name of a metric")
    for name, tag in override.tag_overrides.items():
        if not name:
            to.at("tag_overrides").warn("an empty name", "''", "the name of a tag")
        if (tag.operation is TagOperation.UPSERT) != bool(tag.value):
            to.at("tag_overrides", name).error(
                "value and operation differ", repr(tag.value), "a value with UPSERT, none with REMOVE"
            )
