"""A gRPC server in the mesh: whom it lets in, what its handlers are told, and what travels on."""
