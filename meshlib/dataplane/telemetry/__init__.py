"""What is told of requests: metrics, spans and the access log, by Istio's names."""
