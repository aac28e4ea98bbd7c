"""What clips look like: small pictures of them, as training sees each, and which of them are alike."""
