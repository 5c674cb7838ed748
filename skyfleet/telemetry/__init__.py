"""What Skyfleet tells of itself: metrics, logs and traces."""
