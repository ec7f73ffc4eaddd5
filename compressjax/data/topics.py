"""The topics of the Python language reference, text that every Python carries.

The text changes with the Python version, so no figure may be pinned to it across versions.
"""


def topics_text() -> str:
    """All topics of ``pydoc_data.topics`` in alphabetical order, a blank line between; about 465,000 characters.

    Raises:
      FileNotFoundError: this Python was built without ``pydoc_data``, as some distributions do.
    """
    try:
        # Inside the function: the module is half a megabyte of literals, and most callers want another text.
        from pydoc_data.topics import topics
    except ImportError:
        raise FileNotFoundError("this Python has no module pydoc_data.topics; choose another text") from None
    return "\n\n".join(topics[name] for name in sorted(topics))
