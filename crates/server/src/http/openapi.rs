//! The description of the HTTP door: `/openapi.json` (OpenAPI 3.1) and `docs/api/http.md`, both
//! printed from [`OPERATIONS`] and [`PARAMETERS`]. Tests ask the router for each operation and
//! compare the page with what is printed.

use serde_json::{Value, json};

/// A method of a path.
#[derive(Debug)]
pub struct Operation {
    /// The method.
    pub method: &'static str,
    /// The path; `{ns}` and `{key}` stand for a name and a key.
    pub path: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Names of [`PARAMETERS`].
    pub parameters: &'static [&'static str],
    /// What the body is, if there is one: `bytes`, or the name of a schema.
    pub body: Option<&'static str>,
    /// Status, what it means, and what the body is (as above, `text`, or empty).
    pub replies: &'static [(u16, &'static str, &'static str)],
}

/// A parameter: name, where (`query` or `header`), type, meaning.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// `query` or `header`.
    pub place: &'static str,
    /// A JSON Schema type.
    pub kind: &'static str,
    /// One or two sentences.
    pub help: &'static str,
}

const fn parameter(
    name: &'static str,
    place: &'static str,
    kind: &'static str,
    help: &'static str,
) -> Parameter {
    Parameter {
        name,
        place,
        kind,
        help,
    }
}

/// Every parameter of every route.
pub const PARAMETERS: &[Parameter] = &[
    parameter(
        "consistency",
        "query",
        "string",
        "`linearizable` (default), `lease` or `stale`; echoed in `KV-Consistency`. A single node answers all alike.",
    ),
    parameter(
        "durability",
        "query",
        "string",
        "`sync`: acknowledged when it survives power loss. `buffered`: when it survives the death of the process. Default: the server's setting. Echoed in `KV-Durability`.",
    ),
    parameter(
        "ttl",
        "query",
        "string",
        "Time to live: `30s`, `500ms`, `5m`, `2h`, `7d`, or seconds.",
    ),
    parameter(
        "expires_at",
        "query",
        "string",
        "When it expires: Unix seconds, with up to three decimals. Excludes `ttl`.",
    ),
    parameter(
        "key_enc",
        "query",
        "string",
        "How keys in path and query are written: `percent` (default) or `base64url`.",
    ),
    parameter(
        "enc",
        "query",
        "string",
        "How keys and values in lists are written: `auto` (default: text if valid UTF-8, else `key_b64`, `value_b64`), `utf8` (400 if it is not) or `base64`.",
    ),
    parameter(
        "start",
        "query",
        "string",
        "First key of the range, inclusive.",
    ),
    parameter("end", "query", "string", "End of the range, exclusive."),
    parameter(
        "prefix",
        "query",
        "string",
        "Only keys that begin with it; narrows `start` and `end`.",
    ),
    parameter("reverse", "query", "boolean", "From the end to the start."),
    parameter(
        "limit",
        "query",
        "integer",
        "At most so many entries. Pages: default 1,000, at most `limits.page_entries`. Streams: no limit unless given.",
    ),
    parameter(
        "max_bytes",
        "query",
        "string",
        "At most so many bytes of keys and values (`1MiB`); the first entry always fits.",
    ),
    parameter("keys_only", "query", "boolean", "Without values."),
    parameter(
        "cursor",
        "query",
        "string",
        "`next_cursor` of the page before, with the same bounds and direction. Also as header `KV-Cursor`, for cursors that are too long for a query.",
    ),
    parameter(
        "all",
        "query",
        "boolean",
        "Delete every key of the namespace; needed where no bound is given or all are empty, and with a value: `all=true`.",
    ),
    parameter("ns", "query", "string", "The namespace; default `default`."),
    parameter(
        "all_ns",
        "query",
        "boolean",
        "Every namespace; excludes `ns`.",
    ),
    parameter(
        "from",
        "query",
        "integer",
        "The first version to be told. Default: what is committed from now on.",
    ),
    parameter(
        "heartbeat",
        "query",
        "string",
        "How often a line with the progress is sent while nothing changes: `100ms` to `5m`, default `15s`.",
    ),
    parameter(
        "Last-Event-ID",
        "header",
        "string",
        "The last version that was seen; what follows is told, whatever `from` says.",
    ),
    parameter("verbose", "query", "boolean", "List every check."),
    parameter(
        "exclude",
        "query",
        "string",
        "Leave a check out: `shutdown`, `log`, `disk`, `background`. May be repeated.",
    ),
    parameter(
        "If-Match",
        "header",
        "string",
        "Only if the key has this version (`\"12\"`), or exists (`*`); else 412.",
    ),
    parameter(
        "If-None-Match",
        "header",
        "string",
        "GET: 304 if the key still has this version. PUT: only `*`, which creates the key or answers 412.",
    ),
    parameter(
        "Accept",
        "header",
        "string",
        "`application/x-ndjson` streams the range: one object a line, then `{\"end\":true,\"count\":n,\"next_cursor\":null}`. A stream without this line was cut.",
    ),
];

const READ: &[&str] = &["consistency", "key_enc", "If-Match", "If-None-Match"];
const RANGE: &[&str] = &[
    "start",
    "end",
    "prefix",
    "reverse",
    "limit",
    "max_bytes",
    "keys_only",
    "cursor",
    "enc",
    "key_enc",
    "consistency",
    "Accept",
];

/// Every operation. Those of a path with `/v1/ns/{ns}` are the same in another namespace.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/v1/keys/{key}",
        summary: "Read a value.",
        parameters: READ,
        body: None,
        replies: &[
            (
                200,
                "The value; `ETag` is its version, `KV-Expires-At` when it expires.",
                "bytes",
            ),
            (304, "Not modified.", ""),
            (404, "No such key.", "Problem"),
            (412, "If-Match does not hold.", "Problem"),
        ],
    },
    Operation {
        method: "head",
        path: "/v1/keys/{key}",
        summary: "The same without the value.",
        parameters: READ,
        body: None,
        replies: &[
            (200, "It exists.", ""),
            (304, "Not modified.", ""),
            (404, "No such key.", ""),
            (412, "If-Match does not hold.", ""),
        ],
    },
    Operation {
        method: "put",
        path: "/v1/keys/{key}",
        summary: "Write a value.",
        parameters: &[
            "ttl",
            "expires_at",
            "durability",
            "key_enc",
            "If-Match",
            "If-None-Match",
        ],
        body: Some("bytes"),
        replies: &[
            (201, "Created (with `If-None-Match: *`).", ""),
            (204, "Written; `ETag` is the version.", ""),
            (412, "The condition does not hold.", "Problem"),
            (413, "Key or value too large.", "Problem"),
            (507, "The disk is full.", "Problem"),
        ],
    },
    Operation {
        method: "delete",
        path: "/v1/keys/{key}",
        summary: "Delete a key, which need not exist.",
        parameters: &["durability", "key_enc", "If-Match"],
        body: None,
        replies: &[
            (204, "It does not exist any more.", ""),
            (412, "If-Match does not hold.", "Problem"),
        ],
    },
    Operation {
        method: "get",
        path: "/v1/range",
        summary: "Read a range in order: a page, or a stream.",
        parameters: RANGE,
        body: None,
        replies: &[
            (
                200,
                "A page (`application/json`) or a stream (`application/x-ndjson`).",
                "Page",
            ),
            (400, "A bad parameter or cursor.", "Problem"),
        ],
    },
    Operation {
        method: "delete",
        path: "/v1/range",
        summary: "Delete every key of a range, at once.",
        parameters: &["start", "end", "prefix", "all", "durability", "key_enc"],
        body: None,
        replies: &[
            (204, "They do not exist any more.", ""),
            (400, "No bound, or an empty range.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/batch",
        summary: "Write many keys, all or nothing, under conditions.",
        parameters: &["durability"],
        body: Some("Batch"),
        replies: &[
            (200, "All was written.", "BatchReply"),
            (
                412,
                "A condition does not hold; nothing was written.",
                "Problem",
            ),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/mget",
        summary: "Read many keys at one instant.",
        parameters: &["consistency", "enc"],
        body: Some("Mget"),
        replies: &[
            (200, "An entry or null for each key.", "MgetReply"),
            (
                413,
                "More keys, or more bytes in reply, than allowed.",
                "Problem",
            ),
        ],
    },
    Operation {
        method: "get",
        path: "/v1/watch",
        summary: "The changefeed: every durable change from a version on, in order, without gaps.",
        parameters: &[
            "ns",
            "all_ns",
            "prefix",
            "start",
            "end",
            "from",
            "keys_only",
            "heartbeat",
            "enc",
            "key_enc",
            "Last-Event-ID",
        ],
        body: None,
        replies: &[
            (
                200,
                "Lines (`application/x-ndjson`) or events (with `Accept: text/event-stream`), until the client or the server ends it. See watch.md.",
                "WatchLine",
            ),
            (
                400,
                "A bad parameter, or a version that does not exist yet.",
                "Problem",
            ),
            (404, "No such namespace.", "Problem"),
            (
                410,
                "The log no longer has this version; `oldest_version` is the oldest that it has.",
                "Problem",
            ),
            (
                503,
                "`limits.watches` are open; or, in a cluster, there is no leader.",
                "Problem",
            ),
        ],
    },
    Operation {
        method: "get",
        path: "/v1/ns",
        summary: "List namespaces.",
        parameters: &[],
        body: None,
        replies: &[(200, "By name.", "Namespaces")],
    },
    Operation {
        method: "get",
        path: "/v1/ns/{ns}",
        summary: "What a namespace holds.",
        parameters: &[],
        body: None,
        replies: &[
            (200, "Estimates.", "Namespace"),
            (404, "No such namespace.", "Problem"),
        ],
    },
    Operation {
        method: "put",
        path: "/v1/ns/{ns}",
        summary: "Create a namespace.",
        parameters: &[],
        body: None,
        replies: &[(201, "Created.", ""), (204, "It was there.", "")],
    },
    Operation {
        method: "delete",
        path: "/v1/ns/{ns}",
        summary: "Drop a namespace with everything in it.",
        parameters: &[],
        body: None,
        replies: &[
            (204, "Dropped.", ""),
            (404, "No such namespace.", "Problem"),
        ],
    },
    Operation {
        method: "get",
        path: "/v1/cluster",
        summary: "The cluster, as this node sees it.",
        parameters: &[],
        body: None,
        replies: &[
            (200, "`lag` and `heard_ms` only from the leader.", "Cluster"),
            (409, "The server is no node of a cluster.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/cluster/members",
        summary: "Let a new node belong, without a vote at first. `firn serve --join` does this.",
        parameters: &[],
        body: Some("Join"),
        replies: &[
            (201, "Its number.", "Joined"),
            (400, "The address is a member's already.", "Problem"),
            (503, "Ask the node that `leader` names.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/cluster/promote",
        summary: "Give a node that has caught up a vote.",
        parameters: &[],
        body: Some("Node"),
        replies: &[
            (204, "It has one.", ""),
            (400, "It is no member, or has not caught up.", "Problem"),
            (503, "Ask the node that `leader` names.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/cluster/demote",
        summary: "Take the vote of a node, which stays.",
        parameters: &[],
        body: Some("Node"),
        replies: &[
            (204, "It has none.", ""),
            (
                400,
                "It is no member, or the rest would be no majority.",
                "Problem",
            ),
            (503, "Ask the node that `leader` names.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/cluster/remove",
        summary: "Remove a node for good.",
        parameters: &[],
        body: Some("Node"),
        replies: &[
            (204, "It is gone.", ""),
            (
                400,
                "It is no member, or the rest would be no majority; `force` does it all the same.",
                "Problem",
            ),
            (503, "Ask the node that `leader` names.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/cluster/transfer",
        summary: "Let another node lead: `node`, or who has most of the log.",
        parameters: &[],
        body: Some("Node"),
        replies: &[
            (200, "Who leads now.", "Node"),
            (400, "Nobody else can.", "Problem"),
            (503, "Ask the node that `leader` names.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/admin/flush",
        summary: "Write memtables to SSTables.",
        parameters: &[],
        body: None,
        replies: &[(204, "Done.", "")],
    },
    Operation {
        method: "post",
        path: "/v1/admin/compact",
        summary: "Compact a range to the bottom level.",
        parameters: &["ns", "start", "end", "prefix", "key_enc"],
        body: None,
        replies: &[(204, "Done.", "")],
    },
    Operation {
        method: "post",
        path: "/v1/admin/checkpoint",
        summary: "Make a consistent copy on the server's disk, by hard links where it can.",
        parameters: &[],
        body: Some("Checkpoint"),
        replies: &[
            (201, "Made.", "CheckpointReply"),
            (409, "The name is taken.", "Problem"),
        ],
    },
    Operation {
        method: "post",
        path: "/v1/admin/verify",
        summary: "Check every checksum and invariant, online.",
        parameters: &[],
        body: None,
        replies: &[(200, "What was found.", "VerifyReply")],
    },
    Operation {
        method: "get",
        path: "/v1/admin/stats",
        summary: "Gauges and counters of the engine.",
        parameters: &[],
        body: None,
        replies: &[(200, "All of them.", "Stats")],
    },
    Operation {
        method: "get",
        path: "/livez",
        summary: "Is the process alive?",
        parameters: &["verbose", "exclude"],
        body: None,
        replies: &[(200, "Yes.", "text")],
    },
    Operation {
        method: "get",
        path: "/readyz",
        summary: "Should it be sent requests? Also `/healthz` and `/health`.",
        parameters: &["verbose", "exclude"],
        body: None,
        replies: &[
            (200, "Yes.", "text"),
            (503, "No; the page says why.", "text"),
        ],
    },
    Operation {
        method: "get",
        path: "/metrics",
        summary: "Metrics for Prometheus (OpenMetrics if asked for).",
        parameters: &[],
        body: None,
        replies: &[(200, "The page.", "text")],
    },
    Operation {
        method: "get",
        path: "/openapi.json",
        summary: "This description.",
        parameters: &[],
        body: None,
        replies: &[(200, "OpenAPI 3.1.", "any")],
    },
];

/// Whether the route also exists below `/v1/ns/{ns}`.
fn has_twin(path: &str) -> bool {
    [
        "/v1/keys/{key}",
        "/v1/range",
        "/v1/batch",
        "/v1/mget",
        "/v1/watch",
    ]
    .contains(&path)
}

/// The OpenAPI document.
pub fn document() -> Value {
    let mut paths = serde_json::Map::new();
    for operation in OPERATIONS {
        let twin =
            has_twin(operation.path).then(|| operation.path.replacen("/v1/", "/v1/ns/{ns}/", 1));
        for path in [Some(operation.path.to_owned()), twin]
            .into_iter()
            .flatten()
        {
            let described = describe(operation, &path);
            if let Value::Object(item) = paths.entry(path).or_insert_with(|| json!({})) {
                item.insert(operation.method.into(), described);
            }
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "FirnDB",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An ordered, durable key/value store. Values are raw bodies, versions are entity tags, errors are RFC 9457 problems.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn describe(operation: &Operation, path: &str) -> Value {
    let mut parameters = Vec::new();
    for (name, help) in [
        ("ns", "Name of the namespace, percent-encoded."),
        (
            "key",
            "The key: any bytes, percent-encoded; `/` may stand as it is. `+` is a plus.",
        ),
    ] {
        if path.contains(&format!("{{{name}}}")) {
            parameters.push(json!({ "name": name, "in": "path", "required": true, "description": help, "schema": { "type": "string" } }));
        }
    }
    for p in PARAMETERS
        .iter()
        .filter(|p| operation.parameters.contains(&p.name))
    {
        parameters.push(json!({ "name": p.name, "in": p.place, "description": p.help, "schema": parameter_schema(p) }));
    }
    let mut replies = serde_json::Map::new();
    for (status, help, body) in operation.replies {
        replies.insert(status.to_string(), reply(help, body));
    }
    replies.insert(
        "default".into(),
        reply("See docs/api/errors.md.", "Problem"),
    );
    let id = path
        .replace("/v1/", "")
        .replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut described = json!({
        "operationId": format!("{}_{}", operation.method, id.trim_matches('_')),
        "summary": operation.summary,
        "parameters": parameters,
        "responses": replies,
    });
    if let Some(body) = operation.body {
        described["requestBody"] = json!({ "content": content(body) });
    }
    described
}

fn reply(help: &str, body: &str) -> Value {
    if body.is_empty() {
        return json!({ "description": help });
    }
    json!({ "description": help, "content": content(body) })
}

fn content(body: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{body}") });
    match body {
        "bytes" => json!({ "application/octet-stream": {} }),
        "text" => json!({ "text/plain": { "schema": { "type": "string" } } }),
        "any" => json!({ "application/json": {} }),
        "Problem" => json!({ "application/problem+json": { "schema": schema } }),
        "WatchLine" => {
            json!({ "application/x-ndjson": { "schema": schema }, "text/event-stream": {} })
        }
        "Page" => json!({ "application/json": { "schema": schema }, "application/x-ndjson": {} }),
        _ => json!({ "application/json": { "schema": schema } }),
    }
}

/// The type of a parameter, and its values where they can be listed.
fn parameter_schema(parameter: &Parameter) -> Value {
    let kind = parameter.kind;
    let values: &[&str] = match parameter.name {
        "consistency" => &["linearizable", "lease", "stale"],
        "durability" => &["sync", "buffered"],
        "key_enc" => &["percent", "base64url"],
        "enc" => &["auto", "utf8", "base64"],
        // It may be given several times.
        "exclude" => {
            let one = json!({ "type": kind, "enum": crate::health::CHECKS });
            return json!({ "type": "array", "items": one });
        }
        "limit" => return json!({ "type": kind, "minimum": 1 }),
        "from" => return json!({ "type": kind, "minimum": 0 }),
        "If-Match" | "If-None-Match" => {
            let tag = "(W/)?\"[^\"]*\"";
            let pattern = format!("^(\\*|{tag}( *, *{tag})*)$");
            return json!({ "type": kind, "pattern": pattern });
        }
        // As it may be written in a query; an empty one, as in `?verbose`, is true.
        "all" => return json!({ "anyOf": [{ "type": kind }, { "enum": [1, 0, "1", "0"] }] }),
        _ if kind == "boolean" => {
            return json!({ "anyOf": [{ "type": kind }, { "enum": [1, 0, "1", "0", ""] }] });
        }
        _ => return json!({ "type": kind }),
    };
    json!({ "type": kind, "enum": values })
}

fn schemas() -> Value {
    let object = |required: &[&str], properties: Value| json!({ "type": "object", "required": required, "properties": properties });
    let text = || json!({ "type": "string" });
    let base64 = || json!({ "type": "string", "contentEncoding": "base64" });
    let number = || json!({ "type": "integer", "minimum": 0 });
    let flag = || json!({ "type": "boolean" });
    let maybe = |kind: &str| json!({ "type": [kind, "null"] });
    let list = |name: &str| json!({ "type": "array", "items": { "$ref": format!("#/components/schemas/{name}") } });
    let counts = || json!({ "type": "object", "additionalProperties": { "type": "integer" } });
    let entry = json!({ "key": text(), "key_b64": base64(), "value": text(), "value_b64": base64(), "version": number(), "expires_at_ms": number() });
    json!({
        "Problem": object(&["type", "title", "status", "detail", "code"], json!({
            "type": text(), "title": text(), "status": number(), "detail": text(), "instance": text(),
            "code": { "type": "string", "enum": firn_api::code::Code::ALL.iter().map(|c| c.name()).collect::<Vec<_>>() },
            "limit": number(), "actual": number(), "version": number(), "index": number(), "oldest_version": number(), "retry_after_ms": number(),
        })),
        "Entry": object(&["version"], entry),
        "WatchLine": object(&[], json!({
            "op": { "type": "string", "enum": ["put", "delete", "delete_range", "drop_namespace"] },
            "version": number(), "commit": number(), "more": flag(), "ns": text(),
            "key": text(), "key_b64": base64(), "value": text(), "value_b64": base64(), "expires_at_ms": number(),
            "start": text(), "start_b64": base64(), "to": text(), "to_b64": base64(),
            "progress": number(), "end": flag(), "error": { "$ref": "#/components/schemas/Problem" },
        })),
        "Page": object(&["entries", "count", "next_cursor"], json!({ "entries": list("Entry"), "count": number(), "next_cursor": maybe("string") })),
        "Batch": object(&["ops"], json!({ "ops": list("BatchOp") })),
        "BatchOp": object(&["op"], json!({
            "op": { "type": "string", "enum": ["put", "delete", "delete_range", "check"] },
            "ns": text(), "key": text(), "key_b64": base64(), "value": text(), "value_b64": base64(),
            "ttl": { "type": ["string", "integer"] }, "expires_at_ms": number(),
            "start": text(), "start_b64": base64(), "end": text(), "end_b64": base64(), "prefix": text(), "prefix_b64": base64(),
            "if_absent": flag(), "if_exists": flag(), "if_version": number(),
        })),
        "BatchReply": object(&["versions", "durability"], json!({ "versions": { "type": "array", "items": maybe("integer") }, "durability": text() })),
        "Mget": object(&["keys"], json!({ "keys": { "type": "array", "items": { "anyOf": [text(), object(&["b64"], json!({ "b64": base64() }))] } } })),
        "MgetReply": object(&["entries"], json!({ "entries": { "type": "array", "items": { "anyOf": [{ "$ref": "#/components/schemas/Entry" }, { "type": "null" }] } } })),
        "Namespace": object(&["name"], json!({ "name": text(), "approximate_keys": number(), "disk_bytes": number(), "memtable_bytes": number() })),
        "Namespaces": object(&["namespaces"], json!({ "namespaces": list("Namespace") })),
        "Checkpoint": object(&[], json!({ "name": { "type": ["string", "null"], "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$" } })),
        "CheckpointReply": object(&["path"], json!({ "path": text() })),
        "Cluster": object(&["cluster", "node", "role", "term", "members"], json!({
            "cluster": text(), "node": number(), "role": { "type": "string", "enum": ["leader", "follower", "candidate", "learner", "stopped"] },
            "leader": maybe("integer"), "term": number(), "last_index": maybe("integer"), "committed_index": maybe("integer"),
            "applied_index": maybe("integer"), "trouble": maybe("string"), "members": list("Member"),
        })),
        "Member": object(&["node", "role", "peer"], json!({
            "node": number(), "role": { "type": "string", "enum": ["leader", "voter", "learner"] }, "peer": text(), "http": text(), "resp": text(),
            "lag": maybe("integer"), "heard_ms": maybe("integer"),
        })),
        "Join": object(&["peer"], json!({ "peer": text(), "http": text(), "resp": text(), "node": number() })),
        "Joined": object(&["cluster", "node"], json!({ "cluster": text(), "node": number() })),
        "Node": object(&[], json!({ "node": number(), "force": flag() })),
        "VerifyReply": object(&["clean", "problems"], json!({
            "clean": flag(), "files": number(), "bytes": number(), "entries": number(),
            "log_operations": number(),
            "problems": { "type": "array", "items": object(&["path", "detail"], json!({ "path": text(), "offset": maybe("integer"), "detail": text() })) },
        })),
        "Stats": object(&[], json!({
            "server_version": text(), "uptime_ms": number(), "connections": number(), "last_version": number(), "disk_bytes": number(),
            "compaction_debt_bytes": number(), "snapshots": number(), "oldest_snapshot_version": number(),
            "disk_full": flag(), "poisoned": maybe("string"), "background_error": maybe("string"),
            "memory": counts(), "log": counts(), "blobs": counts(), "counters": counts(), "namespaces": list("Namespace"),
            "levels": { "type": "array", "items": object(&["level"], json!({ "level": number(), "files": number(), "bytes": number() })) },
        })),
    })
}

/// The page `docs/api/http.md`.
pub fn http_page() -> String {
    let mut page = String::from(
        "# HTTP\n\n\
         Printed from `crates/server/src/http/openapi.rs`; a test keeps this page fresh (`UPDATE=1 \
         cargo test -p firn-server` rewrites it). The same as OpenAPI 3.1 is at `/openapi.json`; \
         errors are in [errors.md](errors.md).\n\n\
         ```\n\
         curl -T photo.jpg http://127.0.0.1:8080/v1/keys/photos/1\n\
         curl http://127.0.0.1:8080/v1/keys/photos/1 -o copy.jpg\n\
         curl 'http://127.0.0.1:8080/v1/range?prefix=photos/&keys_only'\n\
         curl -H 'Accept: application/x-ndjson' http://127.0.0.1:8080/v1/range\n\
         curl http://127.0.0.1:8080/v1/batch -d '{\"ops\":[{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"},{\"op\":\"delete\",\"key\":\"b\",\"if_version\":7}]}'\n\
         ```\n\n\
         - A value is the body, as it is. A key is any bytes: in the path percent-encoded, where `/` \
         may stand as it is. A request's target is at most 65,534 bytes; longer keys go through \
         `/v1/batch` and `/v1/mget`, where they have 64 KiB.\n\
         - A version is the sequence number of the write. It is the `ETag`, grows with every write \
         of the whole store, and is never used twice.\n\
         - In JSON, `\"key\"` is text and `\"key_b64\"` any bytes in base64; the same for `value`, \
         `start`, `end` and `prefix`. In a query, `+` is a space.\n\
         - Parameters that a route does not know are an error. `OPTIONS` lists the methods of a path.\n\
         - Web pages of other origins are refused, and without `insecure` so is every `Host` but \
         `localhost` and addresses: 403 `foreign_origin`. A proxy must send such a Host.\n\
         - `/v1/keys`, `/v1/range`, `/v1/batch`, `/v1/mget` and `/v1/watch` mean the namespace `default`; below \
         `/v1/ns/{ns}` they mean another one, which must exist.\n\
         - Conditions of a batch look at the state before it. An operation of a batch is one of\n  \
         `{\"op\":\"put\",\"key\":..,\"value\":..,\"ttl\":\"30s\"}`, `{\"op\":\"delete\",\"key\":..}`, \
         `{\"op\":\"delete_range\",\"prefix\":..}` (or `start`, `end`), \
         `{\"op\":\"check\",\"key\":..}`; `if_absent`, `if_exists` or `if_version` may be added to \
         those with a key, `ns` to all.\n\
         - A page sees one instant, the next page a later one; a stream sees one instant throughout.\n\
         - A client that waits too long with the head or the next bytes of a body, or does not take \
         the reply, is disconnected: see `limits.*_timeout` of the configuration.\n\
         - HTTP/2 is spoken on the same port by clients that begin with it (`curl \
         --http2-prior-knowledge`), and [gRPC](grpc.md) on top of it.\n\
         - With `limits.rate` a client that sends more is answered 429 with `Retry-After`; `RateLimit` \
         and `RateLimit-Policy` tell beforehand ([how](grpc.md#the-rate-of-a-client)).\n\n\
         ## Routes\n\n",
    );
    for operation in OPERATIONS {
        let twin = if has_twin(operation.path) {
            " (also below `/v1/ns/{ns}`)"
        } else {
            ""
        };
        page.push_str(&format!(
            "### `{} {}`{twin}\n\n{}\n\n",
            operation.method.to_uppercase(),
            operation.path,
            operation.summary
        ));
        if !operation.parameters.is_empty() {
            let names: Vec<_> = operation
                .parameters
                .iter()
                .map(|p| format!("`{p}`"))
                .collect();
            page.push_str(&format!("Takes {}.\n\n", names.join(", ")));
        }
        if let Some(body) = operation.body {
            page.push_str(&format!("Body: {}.\n\n", body_name(body)));
        }
        for (status, help, body) in operation.replies {
            let body = if body.is_empty() {
                String::new()
            } else {
                format!(" Body: {}.", body_name(body))
            };
            page.push_str(&format!("- {status}: {help}{body}\n"));
        }
        page.push('\n');
    }
    page.push_str("## Parameters\n\n| Name | In | Type | Meaning |\n|---|---|---|---|\n");
    for p in PARAMETERS {
        page.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            p.name, p.place, p.kind, p.help
        ));
    }
    page
}

fn body_name(body: &str) -> String {
    match body {
        "bytes" => "the value".into(),
        "text" => "text".into(),
        "any" => "JSON".into(),
        _ => format!("`{body}`"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the test reads and writes a page of docs"
    )]
    use super::*;
    use crate::http::route::Target;

    #[test]
    fn the_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api/http.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, http_page()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == http_page(),
            "docs/api/http.md is stale: UPDATE=1 rewrites it"
        );
    }

    #[test]
    fn the_router_knows_what_is_described() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        for (path, item) in paths {
            let target = Target::parse(path).unwrap_or_else(|| panic!("{path}"));
            let methods: Vec<_> = target
                .methods()
                .iter()
                .map(|m| m.as_str().to_lowercase())
                .collect();
            for method in item.as_object().unwrap().keys() {
                assert!(methods.contains(method), "{method} {path}");
            }
            for method in methods.iter().filter(|m| *m != "head") {
                assert!(
                    item.get(method).is_some(),
                    "{method} {path} is not described"
                );
            }
        }
        for operation in OPERATIONS {
            for name in operation.parameters {
                assert!(PARAMETERS.iter().any(|p| p.name == *name), "{name}");
            }
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_exists() {
        let document = document();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"].get(name).is_some(),
                "{name}"
            );
        }
    }
}
