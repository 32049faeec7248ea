//! Fails by rule.
