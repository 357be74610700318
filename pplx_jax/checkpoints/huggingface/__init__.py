"""Hugging Face folders of Qwen3 and pplx-embed models: reading them, and the name map of their weights."""
