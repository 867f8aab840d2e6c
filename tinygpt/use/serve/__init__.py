"""Serve a model on this machine: an API for clients of OpenAI's protocol, and a chat page.

A request passes through app, protocol and chat into the engine's queue; tokens pass from the engine through responses
back to the client, one by one. A sequence ends at the model's end token, at a stop text of the request, which is left
out (engine.Row and generate.TextStream), or after max_tokens.

Needs the packages starlette and uvicorn (pip install "tinygpt[serve]").

    tinygpt serve out
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:"}'
"""
