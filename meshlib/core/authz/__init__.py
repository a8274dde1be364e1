"""May it: who may send which request to a port of this process (Envoy's RBAC and ext_authz)."""
