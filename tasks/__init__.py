"""How each stage runs under Prefect: retries, timeouts, artifacts. What a stage does is in filters/, models/ and winnow/."""
