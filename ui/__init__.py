"""The page of the explorer; the only code that imports gradio."""
