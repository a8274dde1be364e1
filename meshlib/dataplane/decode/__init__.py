"""Protobuf → core values. What is invalid is refused with the path of the field."""
