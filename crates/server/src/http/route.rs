//! Which path means what. Paths are looked at raw, before percent-decoding: a key may hold any
//! byte, and an encoded slash in the name of a namespace is not a separator.

use http::Method;

/// What a path means. Names and keys are still percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Key { ns: Option<&'a str>, key: &'a str },
    Range { ns: Option<&'a str> },
    Batch { ns: Option<&'a str> },
    Mget { ns: Option<&'a str> },
    Watch { ns: Option<&'a str> },
    Namespaces,
    Namespace { ns: &'a str },
    Flush,
    Compact,
    Checkpoint,
    Verify,
    Stats,
    Cluster,
    Members,
    Promote,
    Demote,
    Remove,
    Transfer,
    Livez,
    Readyz,
    Metrics,
    OpenApi,
}

impl<'a> Target<'a> {
    /// The target of a path, if it has one.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        Some(match path {
            "/livez" => Self::Livez,
            "/readyz" | "/healthz" | "/health" => Self::Readyz,
            "/metrics" => Self::Metrics,
            "/openapi.json" => Self::OpenApi,
            _ => {
                let rest = path.strip_prefix("/v1/")?;
                match rest {
                    "ns" => Self::Namespaces,
                    "admin/flush" => Self::Flush,
                    "admin/compact" => Self::Compact,
                    "admin/checkpoint" => Self::Checkpoint,
                    "admin/verify" => Self::Verify,
                    "admin/stats" => Self::Stats,
                    "cluster" => Self::Cluster,
                    "cluster/members" => Self::Members,
                    "cluster/promote" => Self::Promote,
                    "cluster/demote" => Self::Demote,
                    "cluster/remove" => Self::Remove,
                    "cluster/transfer" => Self::Transfer,
                    _ => match rest.strip_prefix("ns/") {
                        None => Self::data(None, rest)?,
                        Some(rest) => match rest.split_once('/') {
                            None => Self::Namespace { ns: rest },
                            Some((ns, rest)) => Self::data(Some(ns), rest)?,
                        },
                    },
                }
            }
        })
    }

    fn data(ns: Option<&'a str>, rest: &'a str) -> Option<Self> {
        Some(match rest {
            "range" => Self::Range { ns },
            "batch" => Self::Batch { ns },
            "mget" => Self::Mget { ns },
            "watch" => Self::Watch { ns },
            _ => Self::Key {
                ns,
                key: rest.strip_prefix("keys/")?,
            },
        })
    }

    /// The methods it takes.
    pub(crate) fn methods(&self) -> &'static [Method] {
        match self {
            Self::Key { .. } => &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE],
            Self::Namespace { .. } => &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE],
            Self::Range { .. } => &[Method::GET, Method::HEAD, Method::DELETE],
            Self::Watch { .. } => &[Method::GET],
            Self::Batch { .. }
            | Self::Mget { .. }
            | Self::Flush
            | Self::Compact
            | Self::Checkpoint
            | Self::Verify
            | Self::Members
            | Self::Promote
            | Self::Demote
            | Self::Remove
            | Self::Transfer => &[Method::POST],
            Self::Namespaces
            | Self::Stats
            | Self::Cluster
            | Self::Livez
            | Self::Readyz
            | Self::Metrics
            | Self::OpenApi => &[Method::GET, Method::HEAD],
        }
    }

    /// What the request is counted under.
    pub(crate) fn op(&self, method: &Method) -> &'static str {
        match self {
            Self::Key { .. } if *method == Method::PUT => "put",
            Self::Key { .. } if *method == Method::DELETE => "delete",
            Self::Key { .. } => "get",
            Self::Range { .. } if *method == Method::DELETE => "delete_range",
            Self::Range { .. } => "range",
            Self::Batch { .. } => "batch",
            Self::Mget { .. } => "mget",
            Self::Watch { .. } => "watch",
            Self::Namespaces | Self::Namespace { .. } => "namespace",
            Self::Flush => "flush",
            Self::Compact => "compact",
            Self::Checkpoint => "checkpoint",
            Self::Verify => "verify",
            Self::Stats => "stats",
            Self::Cluster => "cluster",
            Self::Members => "cluster_join",
            Self::Promote => "cluster_promote",
            Self::Demote => "cluster_demote",
            Self::Remove => "cluster_remove",
            Self::Transfer => "cluster_transfer",
            Self::Livez | Self::Readyz => "health",
            Self::Metrics => "metrics",
            Self::OpenApi => "openapi",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_they_say() {
        for (path, target) in [
            (
                "/v1/keys/a/b%2Fc",
                Some(Target::Key {
                    ns: None,
                    key: "a/b%2Fc",
                }),
            ),
            ("/v1/keys/", Some(Target::Key { ns: None, key: "" })),
            ("/v1/keys", None),
            (
                "/v1/ns/x/keys/range",
                Some(Target::Key {
                    ns: Some("x"),
                    key: "range",
                }),
            ),
            (
                "/v1/ns/x%2Fy/range",
                Some(Target::Range { ns: Some("x%2Fy") }),
            ),
            ("/v1/ns/x", Some(Target::Namespace { ns: "x" })),
            ("/v1/watch", Some(Target::Watch { ns: None })),
            ("/v1/ns", Some(Target::Namespaces)),
            ("/v1/ns/x/nonsense", None),
            ("/v1", None),
            ("/", None),
            ("/health", Some(Target::Readyz)),
        ] {
            assert_eq!(Target::parse(path), target, "{path}");
        }
    }
}
