"""Downloading public data sets into the layout that their readers expect."""
