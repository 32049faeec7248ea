//! Nothing: see `benches`. `cargo bench --manifest-path bench/micro/Cargo.toml [FILTER]`.
