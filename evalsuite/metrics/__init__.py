"""Text metrics: plain functions over references, documents and predictions; nothing here knows artifacts."""
