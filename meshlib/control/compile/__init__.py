"""(graph, client, names) → resources. Pure; a file per kind and per feature."""
