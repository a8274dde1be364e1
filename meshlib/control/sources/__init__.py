"""Where documents come from: folders of YAML, and memory."""
