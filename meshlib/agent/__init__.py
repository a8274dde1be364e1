"""The keeper of a real Envoy: its bootstrap, its process, its secrets."""
