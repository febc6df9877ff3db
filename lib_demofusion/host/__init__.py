"""Connects the extension to the webui. In `lib_demofusion`, only this package imports `modules` or gradio."""
