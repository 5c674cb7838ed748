"""The dashboard: Streamlit over the API.

`app.py` is the entry, `rooms/` the pages, `components/` their parts.
"""
