"""What Istio's webhook says of a spec that has the right form: one function a kind, a Report taken."""
