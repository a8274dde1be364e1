"""The contract between control service and data plane: everything that crosses the wire, sans-IO."""
