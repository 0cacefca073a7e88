"""What to keep: labels, classifiers, thresholds with certificates, scoring. Sees feature arrays, never networks."""
