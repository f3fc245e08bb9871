"""The page of `na-ssl app` as a Space of the Hugging Face hub."""

from na_ssl_hf.app.page import make_page, page_options

page = make_page()

if __name__ == "__main__":
    page.launch(**page_options())
