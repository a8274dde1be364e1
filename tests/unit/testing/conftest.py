"""The fixtures of the plugin, whether or not this installation has its entry point yet."""

from meshlib.testing.plugin import mesh, mesh_rules

__all__ = ["mesh", "mesh_rules"]
