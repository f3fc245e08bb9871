"""A page in the browser that fits and scores what is uploaded: `na-ssl app`, and a Space on the hub.

`steps.py` does what the page offers, `page.py` is the page, `serving.py` serves it on this computer.
"""
