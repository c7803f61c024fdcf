"""Ways of spreading clients over servers, with their real components, under the same faults."""
