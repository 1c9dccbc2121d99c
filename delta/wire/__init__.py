"""Messages of the protocol: conversions between tensors, errors and bindings and what crosses the wire."""
