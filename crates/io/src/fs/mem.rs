//! In memory, can lose power.
