"""Methods side by side: the demo on a real layer."""
