"""What is pushed, when, to whom: ADS over gRPC, registration, status."""
