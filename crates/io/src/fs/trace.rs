//! Records every call.
