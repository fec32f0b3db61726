"""A page to try models on: how an image is analysed, and how that is shown. Only `page` needs Gradio."""
