"""SkyPilot behind the `Cloud` protocol: real clouds, Kubernetes and Slurm, through SkyPilot's API server."""
