"""The web page: draw, ask, chat and replay in a browser, on the server's engine.

    studio    what the page does, without a page: checked, joined with what others ask for, shown as it comes
    page      what stands on it, in gradio (extra `app`)

It is the server with a page before it: the routes of `serving.app` are there too, and their bounds hold for the page.
"""
