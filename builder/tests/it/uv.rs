//! With uv.
