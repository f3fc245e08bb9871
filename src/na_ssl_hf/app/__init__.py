"""A page in the browser that fits and scores what is uploaded: `na-ssl app`, and a Space on the hub.

`steps.py` does what the page offers, and `log_mel.py` adds an opinion without a network. `page.py` is the page, and
`serving.py` serves it on this computer.
"""
