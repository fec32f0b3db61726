"""The web page: analysing an image and showing the result. Only `page` and `server` need Gradio."""
