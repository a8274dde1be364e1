"""gRPC's own xDS client and server in this process: their bootstrap is ours, their rules are the mesh's."""
