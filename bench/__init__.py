"""What a call costs, measured against the same work by hand."""
