"""The shared ground of Winnow: storage, receipts, partitions, manifests, download, shards, the decision log and the audit report."""
