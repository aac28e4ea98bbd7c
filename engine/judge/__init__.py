"""How much a run's previews move, keep and drift, measured against the clips that it trains on."""
