"""The webui's side: everything that imports `modules` or gradio. The hooks in scripts/ call into here."""
