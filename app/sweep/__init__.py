"""`growthlaw sweep`: a grid of growth runs as data, queued through the service, collected and checked."""
