"""Hugging Face folders of Qwen3, Qwen2.5, Llama and pplx-embed models: how they are read, and the names of tensors."""
