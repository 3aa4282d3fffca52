"""Where faces are, who they belong to, how far they can be trusted."""
