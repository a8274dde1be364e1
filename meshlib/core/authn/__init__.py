"""Who is the end user: the tokens of requests (Envoy's jwt_authn)."""
