"""What a step takes: modelled from hardware facts, or measured by a running pod."""
