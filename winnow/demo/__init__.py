"""The demo's made-up web: a world of drawn scenes with known truth (world.py), and the faulty server that serves it (server.py)."""
