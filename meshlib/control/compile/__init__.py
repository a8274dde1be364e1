"""From the graph to resources for one client: a file for every feature, named like its decoder."""
