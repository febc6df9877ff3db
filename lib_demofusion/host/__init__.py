"""Connects the extension to its host, the webui. All code that imports `modules` or gradio is here."""
