"""Hours, bytes, GPU hours and money of a job of a given size: arithmetic only, every step of it shown (docs/plan.md)."""
