"""What a release costs: events, the analytic Gaussian, the accountant, the ceiling, the claim, the ledger."""
