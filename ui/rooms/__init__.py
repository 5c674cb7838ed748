"""The pages, one file each, run by `st.navigation`.

Not `ui/pages/`: Streamlit takes a folder of that name for its older way of making pages, and would offer its files
before a person has signed in.
"""
