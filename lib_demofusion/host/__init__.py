"""Connects the extension to the webui. All code that imports `modules` or gradio is here."""
