"""The audit report: numbers gathered from the files of a run, and one self-contained HTML page that shows them."""
