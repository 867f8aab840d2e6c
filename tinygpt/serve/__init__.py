"""Serve a model on this machine: an API for clients of OpenAI's protocol, and a chat page.

    command.py      `tinygpt serve`: load the models, listen, end in order
    watch.py        `tinygpt watch`: the report of a run, kept up to date while it trains
    follow.py       what the files of a run in training say, for that page
    listen.py       what both share: the socket, uvicorn, signals
    app.py          the paths: requests to the engine, and its events to responses
    http.py         JSON bodies, streams, errors, the page, protection
    protocol.py     request and response bodies of OpenAI's API
    chat.py         conversations as tokens
    engine.py       the inference thread: requests that are decoded together, token by token
    batch.py        the key-value cache of sequences that join and leave
    page.*          the chat page

A request passes through app, protocol and chat into the engine's queue; tokens pass from the engine through app back to
the client, as they are made. Needs the packages starlette and uvicorn (pip install "tinygpt[serve]").

    tinygpt serve --ckpt out/ckpt.pt
    curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:"}'
"""
