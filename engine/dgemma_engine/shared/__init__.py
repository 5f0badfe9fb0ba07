"""One engine process for all windows of a user.

    client.py  -- frames of JSON over a private socket -->  server.py -> desk.py -> the engine
                                        http.py (for other tools) --------^

`wire.py` says what a frame is, `places.py` where the sockets lie and who may open them. Nothing
here imports torch; the process that holds the model does when it loads it.
"""
