"""Which endpoint: localities and priorities first, then the policy's pick among the healthy."""
