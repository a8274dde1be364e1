"""Every merge, precedence and visibility rule of the documents, applied once."""

from meshlib.control.graph.graph import Graph, build_graph

__all__ = ["Graph", "build_graph"]
