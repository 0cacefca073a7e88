"""The page people label on: a local web server over the label store. Needs FastAPI, uvicorn and Pillow; nothing else here does."""
